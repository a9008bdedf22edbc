// SPDX-License-Identifier: Apache-2.0

package kvstore

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Root is the prefix of everything Hawser stores.
const Root = "hawser/v1/"

// Subtree is the first part of a key; it decides who may read and write.
type Subtree string

// The three subtrees.
const (
	State   Subtree = "state"   // a cluster's public face, mirrored to peers
	Local   Subtree = "local"   // read by the cluster's own agents
	Private Subtree = "private" // API servers of the cluster only
)

// Kind is a directory of a subtree: what a record is.
type Kind string

// Kinds of record.
const (
	KindCluster        Kind = "cluster"
	KindNode           Kind = "nodes"
	KindIdentity       Kind = "identities/id"
	KindIdentityLabels Kind = "identities/labels"
	KindIP             Kind = "ips"
	KindVTEP           Kind = "vteps"
	KindService        Kind = "services"
	KindServiceID      Kind = "serviceids"
	KindSlice          Kind = "slices"
	KindHealth         Kind = "health"
	KindPolicy         Kind = "policies"
	KindRef            Kind = "refs"
	KindRetired        Kind = "retired"
	KindPresence       Kind = "presence"
	KindStatus         Kind = "status"
	KindNodeConfig     Kind = "nodeconfig"
	KindPeerView       Kind = "peers"
	KindSynced         Kind = "synced"
	KindIncarnation    Kind = "incarnation"
	KindProgress       Kind = "progress"
	KindToken          Kind = "tokens"
	KindElection       Kind = "elections"
	KindPodCIDR        Kind = "podcidrs"
	KindVIP            Kind = "vips"
	KindEnrolment      Kind = "enrolments"
	KindTrust          Kind = "trust"
	KindGossip         Kind = "gossip"
	KindGossipKeys     Kind = "gossip-keys"
	KindCARotation     Kind = "ca"
)

// PublicKinds are the kinds below state/, in the order in which a writer stores
// them within one flush: identities before nodes before ips before the rest.
var PublicKinds = []Kind{
	KindCluster, KindIdentityLabels, KindIdentity, KindNode, KindIP, KindVTEP,
	KindServiceID, KindService, KindSlice, KindHealth,
}

// AnyArity is the Arity of kinds that take one name or more.
const AnyArity = -1

// Arity is the number of name parts below a kind's directory, or AnyArity.
func (k Kind) Arity() int {
	switch k {
	case KindElection: // elections/import/<peer>, and a candidate's lease below it
		return AnyArity
	case KindCluster, KindIncarnation, KindTrust, KindGossip, KindGossipKeys, KindCARotation:
		return 0
	case KindService, KindPolicy, KindRef, KindSynced:
		return 2
	case KindSlice:
		return 3
	default:
		return 1
	}
}

// Key is a parsed key.
type Key struct {
	Subtree Subtree
	Cluster string
	Kind    Kind
	Names   []string // unescaped, Kind.Arity() of them; any number for unknown kinds
}

// NewKey builds a Key; String renders it.
func NewKey(s Subtree, cluster string, k Kind, names ...string) Key {
	return Key{Subtree: s, Cluster: cluster, Kind: k, Names: names}
}

// String is the key as it is stored. Names are path-escaped.
func (k Key) String() string {
	var b strings.Builder
	b.WriteString(Prefix(k.Subtree, k.Cluster))
	b.WriteString(string(k.Kind))
	for _, n := range k.Names {
		b.WriteByte('/')
		b.WriteString(escape(n))
	}
	return b.String()
}

// Relative is the key below <subtree>/<cluster>/, as it crosses the stream.
func (k Key) Relative() string {
	return strings.TrimPrefix(k.String(), Prefix(k.Subtree, k.Cluster))
}

// Prefix is the directory of one cluster in one subtree, ending with '/'.
func Prefix(s Subtree, cluster string) string {
	return Root + string(s) + "/" + cluster + "/"
}

// KindPrefix is the directory of one kind, ending with '/' (the bare key for
// kinds without names).
func KindPrefix(s Subtree, cluster string, k Kind) string {
	p := Prefix(s, cluster) + string(k)
	if k.Arity() == 0 {
		return p
	}
	return p + "/"
}

// SyncedKey is the marker which tells the readers of own that a kind of a
// cluster has been copied completely.
func SyncedKey(own, cluster string, kind Kind) Key {
	return NewKey(Local, own, KindSynced, cluster, string(kind))
}

// SubtreePrefix is the directory of a whole subtree, all clusters.
func SubtreePrefix(s Subtree) string { return Root + string(s) + "/" }

// ParseKey parses a stored key. Unknown kinds parse with the first directory as
// Kind and all remaining parts as Names: readers skip them, mirrors keep them.
// The error is a *BadRecord with reason "key".
func ParseKey(s string) (Key, error) {
	bad := func(why string) (Key, error) {
		return Key{}, &BadRecord{Key: s, Reason: "key", Detail: why}
	}
	rest, ok := strings.CutPrefix(s, Root)
	if !ok {
		return bad("not below " + Root)
	}
	parts := strings.Split(rest, "/")
	if len(parts) < 3 {
		return bad("too few parts")
	}
	sub := Subtree(parts[0])
	switch sub {
	case State, Local, Private:
	default:
		return bad(fmt.Sprintf("unknown subtree %q", parts[0]))
	}
	if err := ValidateClusterName(parts[1]); err != nil {
		return bad(err.Error())
	}
	k := Key{Subtree: sub, Cluster: parts[1], Kind: Kind(parts[2])}
	names := parts[3:]
	if k.Kind == "identities" {
		if len(names) == 0 {
			return bad("identities without id/ or labels/")
		}
		k.Kind = Kind("identities/" + names[0])
		names = names[1:]
	}
	if parts[2] == "" || k.Kind == "identities/" {
		return bad("no kind")
	}
	for _, n := range names {
		u, err := url.PathUnescape(n)
		if err != nil || u == "" || escape(u) != n {
			return bad(fmt.Sprintf("name %q is not canonically escaped", n))
		}
		k.Names = append(k.Names, u)
	}
	switch a := k.Kind.Arity(); {
	case !k.Kind.Known():
	case a == AnyArity && len(k.Names) == 0:
		return bad(fmt.Sprintf("%s takes a name", k.Kind))
	case a != AnyArity && len(k.Names) != a:
		return bad(fmt.Sprintf("%s takes %d names, not %d", k.Kind, k.Kind.Arity(), len(k.Names)))
	}
	return k, nil
}

// Known reports whether this version knows the kind.
func (k Kind) Known() bool {
	switch k {
	case KindCluster, KindNode, KindIdentity, KindIdentityLabels, KindIP, KindVTEP,
		KindService, KindServiceID, KindSlice, KindHealth, KindPolicy, KindRef,
		KindRetired, KindPresence, KindStatus, KindNodeConfig, KindPeerView,
		KindSynced, KindIncarnation, KindProgress, KindToken, KindElection,
		KindPodCIDR, KindVIP, KindEnrolment, KindTrust, KindGossip, KindGossipKeys, KindCARotation:
		return true
	}
	return false
}

// ValidateClusterName says why a cluster name is not acceptable, or nil.
func ValidateClusterName(n string) error {
	if len(n) == 0 || len(n) > 32 {
		return fmt.Errorf("cluster name %q: must have 1 to 32 characters", n)
	}
	for _, r := range n {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return fmt.Errorf("cluster name %q: only a-z, 0-9 and - are allowed", n)
		}
	}
	if n[0] == '-' || n[len(n)-1] == '-' {
		return fmt.Errorf("cluster name %q: may not start or end with -", n)
	}
	return nil
}

// PrefixName is how a prefix or address stands in a key: netip form, addresses
// as /32 or /128.
func PrefixName(p netip.Prefix) string { return p.Masked().String() }

// NumberName is how a number stands in a key.
func NumberName(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// ServiceIDBits is how many bits of a service's number are the cluster's own;
// those above are the cluster's id.
const ServiceIDBits = 16

// ServiceOwner is the id of the cluster that gave a service its number.
func ServiceOwner(n uint32) uint32 { return n >> ServiceIDBits }

// escape is url.PathEscape, which leaves names of Kubernetes objects, labels
// and IPv6 addresses readable and never produces '/'.
func escape(s string) string { return url.PathEscape(s) }
