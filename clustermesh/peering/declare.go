// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/manifest"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/cas"
)

// DeclarationVersion and DeclarationKind are those of a declared peer.
const (
	DeclarationVersion = "hawser.io/v1"
	DeclarationKind    = "Peer"
)

// Declaration is a peer as a file declares it: both sides declare each other,
// and no token is needed.
type Declaration struct {
	Name       string
	ID         uint32
	Endpoints  []string
	CAs        []*x509.Certificate
	PodCIDRs   []string
	NodeCIDRs  []string
	Namespaces []string
	// ServiceCIDRs are its ranges of service addresses, if it has any.
	ServiceCIDRs []string `json:",omitempty"`
}

// ParseDeclarations reads manifests of kind Peer, YAML or JSON. The error joins
// all problems of all documents; with an error there are no declarations.
func ParseDeclarations(source []byte) ([]Declaration, error) {
	docs, err := manifest.Parse(source)
	if err != nil {
		return nil, fmt.Errorf("read peers: %w", err)
	}
	var out []Declaration
	var errs []error
	for _, d := range docs {
		root := d.Root()
		p := parseDeclaration(root)
		if slices.ContainsFunc(out, func(o Declaration) bool { return o.Name == p.Name }) {
			root.Problem("given twice in this input")
		}
		for _, problem := range root.Problems() {
			errs = append(errs, fmt.Errorf("document %d: %s %s: %w", d.Index, DeclarationKind, p.Name, problem))
		}
		out = append(out, p)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return out, nil
}

func parseDeclaration(root manifest.Node) Declaration {
	var p Declaration
	if v, k := root.FieldText("apiVersion"), root.FieldText("kind"); v != DeclarationVersion || k != DeclarationKind {
		root.Problem("kind %q of apiVersion %q is not a peer: want %s of %s", k, v, DeclarationKind, DeclarationVersion)
		return p
	}
	root.Only([]string{"apiVersion", "kind", "metadata", "spec"}, nil)
	meta, ok := root.Field("metadata")
	if !ok {
		root.At("metadata").Problem("required")
		return p
	}
	meta.Only([]string{"name", "labels", "annotations"}, nil)
	p.Name = meta.FieldText("name")
	if err := kvstore.ValidateClusterName(p.Name); err != nil {
		meta.At("metadata.name").Problem("%v", err)
	}
	spec, ok := root.Field("spec")
	if !ok {
		root.At("spec").Problem("required")
		return p
	}
	spec.Only([]string{"id", "endpoints", "ca", "podCIDRs", "nodeCIDRs", "serviceCIDRs", "namespaces"}, nil)
	if f, ok := spec.Field("id"); ok {
		v, _ := f.Uint(1 << 12)
		p.ID = uint32(v)
	}
	if p.ID == 0 {
		spec.At("spec.id").Problem("required: the peer's cluster id")
	}
	p.CAs = declaredCAs(spec)
	p.Endpoints = declaredTexts(spec, "endpoints", func(s string) error { _, _, err := net.SplitHostPort(s); return err })
	p.PodCIDRs = declaredTexts(spec, "podCIDRs", wantPrefix)
	p.NodeCIDRs = declaredTexts(spec, "nodeCIDRs", wantPrefix)
	p.ServiceCIDRs = declaredTexts(spec, "serviceCIDRs", wantPrefix)
	p.Namespaces = declaredTexts(spec, "namespaces", checkNamespace)
	if len(p.PodCIDRs) == 0 || len(p.NodeCIDRs) == 0 {
		spec.Problem("podCIDRs and nodeCIDRs are both required: what the peer may publish here")
	}
	return p
}

func declaredCAs(spec manifest.Node) []*x509.Certificate {
	f, ok := spec.Field("ca")
	if !ok {
		spec.At("spec.ca").Problem("required: the peer's CA, PEM; it is printed there by: hawser mesh declare")
		return nil
	}
	text, _ := f.Text()
	certs, err := pki.ParseBundle([]byte(text))
	if err == nil {
		_, err = parseBundle(rawBundle(certs))
	}
	if err != nil {
		f.Problem("%v", err)
	}
	return certs
}

func wantPrefix(s string) error {
	p, _ := netip.ParsePrefix(s) // what cannot be read is no valid range
	return CheckRange(p)
}

func declaredTexts(spec manifest.Node, field string, check func(string) error) []string {
	f, ok := spec.Field(field)
	if !ok {
		return nil
	}
	var out []string
	for _, item := range f.List() {
		text, ok := item.Text()
		if !ok {
			continue
		}
		if err := check(text); err != nil {
			item.Problem("%q: %v", text, err)
		}
		out = append(out, text)
	}
	return out
}

func (p *Declaration) hash() []byte {
	raw, err := json.Marshal(struct {
		Declaration
		CAs [][]byte
	}{*p, rawBundle(p.CAs)})
	if err != nil {
		return nil
	}
	sum := sha256.Sum256(raw)
	return sum[:]
}

// cluster describes the declared peer by what is declared, and else like ours:
// the stream's hello tells.
func (p *Declaration) cluster(own *keyspacev1.Cluster) *keyspacev1.Cluster {
	return &keyspacev1.Cluster{
		Name: p.Name, Id: p.ID, Endpoints: p.Endpoints, PodCidrs: p.PodCIDRs, NodeCidrs: p.NodeCIDRs,
		ServiceCidrs: p.ServiceCIDRs, Mesh: own.GetMesh(), Version: own.GetVersion(),
	}
}

// Declare makes the peers that a file declares what it says, and has those leave
// that it declared before and does not any more. It returns what is wrong with
// each peer that is not as declared. Peers that joined are never touched, and of
// a declaration that changes only what it says otherwise than before is applied.
func (s *Store) Declare(ctx context.Context, own *keyspacev1.Cluster, ca []*x509.Certificate, want []Declaration) (map[string]error, error) {
	wrong := map[string]error{}
	for _, p := range want {
		if err := cas.Retry(ctx, func() error { return s.declare(ctx, own, ca, p) }); err != nil {
			wrong[p.Name] = err
		}
	}
	peers, _, err := s.Known(ctx)
	if err != nil {
		return wrong, err
	}
	for _, p := range peers {
		listed := slices.ContainsFunc(want, func(d Declaration) bool { return d.Name == p.GetName() })
		if !listed && len(p.GetDeclared()) > 0 && p.GetState() != keyspacev1.Peer_STATE_LEAVING {
			if err := s.StartLeave(ctx, p.GetName()); err != nil {
				wrong[p.GetName()] = err
			}
		}
	}
	return wrong, nil
}

func (s *Store) declare(ctx context.Context, own *keyspacev1.Cluster, ca []*x509.Certificate, p Declaration) error {
	at, err := s.peer(ctx, p.Name)
	if err != nil {
		return err
	}
	switch {
	case at.Rev != 0 && len(at.Msg.GetDeclared()) == 0:
		return fmt.Errorf("it is a peer that joined by token; to declare it, leave it first: hawser mesh leave %s", p.Name)
	case at.Rev != 0 && at.Msg.GetState() == keyspacev1.Peer_STATE_LEAVING:
		return errors.New("it is leaving; it is taken up when that is done")
	case at.Rev != 0 && at.Msg.GetDeclaration() != nil && string(at.Msg.GetDeclared()) == string(p.hash()):
		return nil
	}
	rec, err := p.apply(own, at.Msg, s.now())
	if err != nil {
		return err
	}
	bundle, err := parseBundle(rec.GetTrustBundle())
	if err != nil {
		return err
	}
	all, bad, err := s.Known(ctx)
	if err != nil {
		return err
	}
	others := slices.DeleteFunc(all, func(o *keyspacev1.Peer) bool { return o.GetName() == p.Name })
	var errs []error
	for _, f := range Preflight(Side{Own: own, CA: ca, Peers: others, Unreadable: bad, Now: s.now()}, Candidate{Cluster: p.cluster(own), Bundle: bundle}) {
		if f.GetBlocking() {
			errs = append(errs, fmt.Errorf("%s; %s", f.GetProblem(), f.GetFix()))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if at.Rev != 0 {
		return s.commit(ctx, s.putPeer(rec, at.Rev))
	}
	return s.createPeer(ctx, rec, 0)
}
