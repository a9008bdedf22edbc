// SPDX-License-Identifier: Apache-2.0

// Package labels is what an identity is made of: sets of source:key=value.
//
// A Set is always sorted and has each source:key once. Its canonical text, in
// which every label is ended by ';', is what identities are found by.
package labels

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// Sources of labels. A selector key without a source (Any) matches every source.
const (
	Any        = "any"
	Mesh       = "mesh"      // set by Hawser: cluster, namespace
	Kubernetes = "k8s"       // from a Kubernetes object
	CNI        = "cni"       // from the args.cni.labels convention
	Namespace  = "namespace" // of the workload's namespace, not of the workload: namespace:team=red
	Reserved   = "reserved"  // reserved identities: reserved:host
	CIDR       = "cidr"      // node-local identities of prefixes
	// Service is of identities that serve a service, in the policy engine only: no
	// label that was parsed has this source.
	Service = "service:"
)

// Keys of the labels that Hawser sets itself, with source Mesh.
const (
	ClusterKey   = "cluster"
	NamespaceKey = "namespace"
	// KubernetesName is the label that Kubernetes gives every namespace: its name.
	KubernetesName = "kubernetes.io/metadata.name"
)

// Label is one label. Value may be empty.
type Label struct {
	Source, Key, Value string
}

// String is source:key=value ("source:key" when there is no value).
func (l Label) String() string {
	if l.Value == "" {
		return l.Source + ":" + l.Key
	}
	return l.Source + ":" + l.Key + "=" + l.Value
}

// maxLabel is the longest label text accepted, in bytes.
const maxLabel = 512

// Parse reads "source:key=value", "key=value" or "key"; without a source it is
// def. A ':' after the '=' belongs to the value. It refuses empty keys, control
// characters and ';'.
func Parse(s, def string) (Label, error) {
	if len(s) > maxLabel {
		return Label{}, fmt.Errorf("label %.32q…: longer than %d bytes", s, maxLabel)
	}
	name, value, _ := strings.Cut(s, "=")
	source, key, found := strings.Cut(name, ":")
	if !found {
		source, key = def, name
	}
	l := Label{Source: source, Key: key, Value: value}
	if len(l.String()) > maxLabel { // with its source
		return Label{}, fmt.Errorf("label %.32q…: longer than %d bytes", l.String(), maxLabel)
	}
	return l, l.validate()
}

func (l Label) validate() error {
	if l.Source == "" || l.Key == "" {
		return fmt.Errorf("label %q: source and key may not be empty", l.String())
	}
	for _, part := range []string{l.Source, l.Key, l.Value} {
		if strings.ContainsFunc(part, func(r rune) bool { return r < ' ' || r == ';' || r == 0x7f }) {
			return fmt.Errorf("label %q: ';' and control characters are not allowed", l.String())
		}
	}
	if strings.ContainsAny(l.Source, "=:") || strings.Contains(l.Key, "=") {
		return fmt.Errorf("label %q: '=' and ':' are not allowed in its name", l.String())
	}
	return nil
}

// Set is a sorted set of labels, each source:key once. Treat it as immutable.
type Set []Label

// New makes a Set. Of two labels with the same source and key the later wins.
func New(ls ...Label) Set {
	m := make(map[[2]string]Label, len(ls))
	for _, l := range ls {
		m[[2]string{l.Source, l.Key}] = l
	}
	s := make(Set, 0, len(m))
	for _, l := range m {
		s = append(s, l)
	}
	slices.SortFunc(s, compare)
	return s
}

func compare(a, b Label) int {
	if c := strings.Compare(a.Source, b.Source); c != 0 {
		return c
	}
	return strings.Compare(a.Key, b.Key)
}

// ParseSet parses each text with Parse; all problems are joined by the caller's
// choice of the first error.
func ParseSet(texts []string, def string) (Set, error) {
	ls := make([]Label, 0, len(texts))
	for _, t := range texts {
		l, err := Parse(t, def)
		if err != nil {
			return nil, err
		}
		ls = append(ls, l)
	}
	return New(ls...), nil
}

// Get is the value of a label. With source Any the first source that has the
// key answers.
func (s Set) Get(source, key string) (value string, ok bool) {
	for _, l := range s {
		if l.Key == key && (source == Any || l.Source == source) {
			return l.Value, true
		}
	}
	return "", false
}

// With returns a new Set with the labels added; they win over present ones.
func (s Set) With(ls ...Label) Set { return New(append(slices.Clone(s), ls...)...) }

// Equal reports whether two sets have the same labels.
func (s Set) Equal(o Set) bool { return slices.Equal(s, o) }

// Strings are the labels as texts, sorted.
func (s Set) Strings() []string {
	out := make([]string, len(s))
	for i, l := range s {
		out[i] = l.String()
	}
	return out
}

// Canonical is all labels in order, each ended by ';'. "key=" and "key" are the
// same label.
func (s Set) Canonical() string {
	var b strings.Builder
	for _, l := range s {
		b.WriteString(l.String())
		b.WriteByte(';')
	}
	return b.String()
}

// Hash is the SHA-256 of Canonical in hex: the name of the set in the keyspace.
func (s Set) Hash() string {
	sum := sha256.Sum256([]byte(s.Canonical()))
	return hex.EncodeToString(sum[:])
}

// String is the labels joined by commas, for people.
func (s Set) String() string { return strings.Join(s.Strings(), ",") }
