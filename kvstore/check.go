// SPDX-License-Identifier: Apache-2.0

package kvstore

import (
	"encoding/hex"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
)

// Check says as a *BadRecord why a record may not be believed under its key, or
// nil. Decode has already called it.
func (l Limits) Check(k Key, m proto.Message) error {
	if err := k.checkPlace(); err != nil {
		return err
	}
	switch r := m.(type) {
	case *keyspacev1.Cluster:
		return l.checkCluster(k, r)
	case *keyspacev1.Node:
		return l.checkNode(k, r)
	case *keyspacev1.Identity:
		return l.checkIdentity(k, r)
	case *keyspacev1.IdentityRef:
		return l.checkIdentityRef(k, r)
	case *keyspacev1.IPEntry:
		return l.checkIP(k, r)
	case *keyspacev1.VTEP:
		return checkVTEP(k, r)
	case *keyspacev1.Service:
		return l.checkService(k, r)
	case *keyspacev1.ServiceID:
		return l.checkServiceID(k, r)
	case *keyspacev1.BackendSlice:
		return checkSlice(k, r)
	case *keyspacev1.NodeHealth:
		if r.GetCluster() != k.Cluster {
			return bad(k, ReasonMismatch, "it is of cluster %q", r.GetCluster())
		}
		return agree(k, "node", r.GetNode())
	}
	return checkInternal(k, m)
}

// checkInternal is Check for what never leaves the cluster: its writers are
// ours, so it is enough that key and record agree.
func checkInternal(k Key, m proto.Message) error {
	switch r := m.(type) {
	case *keyspacev1.PolicyObject:
		if r.GetKind() == "" {
			return bad(k, ReasonMismatch, "no kind")
		}
		return agree(k, "namespace", r.GetNamespace(), "name", r.GetName())
	case *keyspacev1.NodeStatus:
		return agree(k, "node", r.GetNode())
	case *keyspacev1.Presence:
		return agree(k, "node", r.GetNode())
	case *keyspacev1.NodeConfig:
		if err := checkPrefixes(k, "pod CIDRs", r.GetPodCidrs(), MaxNodeRanges); err != nil {
			return err
		}
		return agree(k, "node", r.GetNode())
	case *keyspacev1.PeerView:
		return agree(k, "peer", r.GetPeer())
	case *keyspacev1.Peer:
		return agree(k, "name", r.GetName())
	case *keyspacev1.Token:
		return agree(k, "id", r.GetId())
	case *keyspacev1.Enrolment:
		return agree(k, "node", r.GetNode())
	case *keyspacev1.VIPOwner:
		if err := checkAddr(k, "ip", r.GetIp()); err != nil {
			return err
		}
		return agree(k, "ip", r.GetIp())
	case *keyspacev1.TrustBundle:
		if n := len(r.GetCertificates()); n == 0 || n > MaxTrust {
			return bad(k, ReasonMismatch, "%d certificates, want 1 to %d", n, MaxTrust)
		}
	case *keyspacev1.Synced:
		if r.GetIncarnation() == "" {
			return bad(k, ReasonMismatch, "no incarnation")
		}
	case *wrapperspb.StringValue:
		if !utf8.ValidString(r.GetValue()) {
			return bad(k, ReasonDecode, "not text")
		}
		if k.Kind == KindIncarnation && r.GetValue() == "" {
			return bad(k, ReasonDecode, "empty incarnation")
		}
	}
	return nil
}

// agree checks fields, given as name and value, against the key's names.
func agree(k Key, fields ...string) error {
	if len(fields) != 2*len(k.Names) {
		return bad(k, ReasonKey, "has %d names, not %d", len(k.Names), len(fields)/2)
	}
	for i, want := range k.Names {
		if got := fields[2*i+1]; got != want {
			return bad(k, ReasonMismatch, "the record's %s is %q", fields[2*i], got)
		}
	}
	return nil
}

// checkPlace says whether the key's kind belongs into its subtree with as many
// names as it has.
func (k Key) checkPlace() error {
	if a := k.Kind.Arity(); a != AnyArity && len(k.Names) != a {
		return bad(k, ReasonKey, "%s takes %d names, not %d", k.Kind, a, len(k.Names))
	}
	var in []Subtree
	switch k.Kind {
	case KindCluster, KindNode, KindIdentity, KindIdentityLabels, KindIP, KindVTEP, KindServiceID, KindHealth:
		in = []Subtree{State}
	case KindService, KindSlice:
		in = []Subtree{State, Local}
	case KindPolicy, KindRef, KindRetired, KindPresence, KindStatus, KindNodeConfig, KindSynced, KindTrust, KindGossip:
		in = []Subtree{Local}
	case KindPeerView:
		in = []Subtree{Local, Private}
	case KindIncarnation, KindProgress, KindToken, KindElection, KindPodCIDR, KindVIP, KindEnrolment, KindGossipKeys, KindCARotation:
		in = []Subtree{Private}
	}
	for _, s := range in {
		if s == k.Subtree {
			return nil
		}
	}
	return bad(k, ReasonKey, "%s do not live below %s/", k.Kind, k.Subtree)
}

func (l Limits) checkIdentity(k Key, r *keyspacev1.Identity) error {
	if err := l.checkNumber(k, r.GetNumber()); err != nil {
		return err
	}
	if err := agree(k, "number", NumberName(r.GetNumber())); err != nil {
		return err
	}
	if err := bounded(k, "labels", len(r.GetLabels()), MaxLabels); err != nil {
		return err
	}
	set, err := labels.ParseSet(r.GetLabels(), labels.Any)
	if err != nil {
		return bad(k, ReasonLabels, "%v", err)
	}
	return CheckLabels(k, set, r.GetLabels())
}

// CheckLabels checks the labels of an identity that is, or is to be, stored in
// the cluster of k: they are canonical, name that cluster, and use no source or
// name by which Hawser itself says something else.
func CheckLabels(k Key, set labels.Set, texts []string) error {
	if got := set.Strings(); strings.Join(got, "\n") != strings.Join(texts, "\n") {
		return bad(k, ReasonLabels, "not sorted, or not each label once")
	}
	for _, x := range set {
		switch {
		case x.Source == labels.Reserved, x.Source == labels.CIDR, x.Source == labels.Any:
			return bad(k, ReasonLabels, "source %s is not allowed in a stored identity: %s", x.Source, x)
		case IsLabelAlias(x.Key):
			return bad(k, ReasonLabels, "%s is another name of a label that only Hawser sets", x)
		}
	}
	if c, ok := set.Get(labels.Mesh, labels.ClusterKey); !ok || c != k.Cluster {
		return bad(k, ReasonLabels, "%s:%s is %q, not %q", labels.Mesh, labels.ClusterKey, c, k.Cluster)
	}
	return nil
}

// IsLabelAlias reports whether a label key is one by which policies written for
// Cilium call a cluster or a namespace. Such keys select Hawser's own labels, so
// no workload may carry them as labels of its own.
func IsLabelAlias(key string) bool {
	return strings.HasPrefix(key, "io.cilium.k8s.") || strings.HasPrefix(key, "io.kubernetes.pod.")
}

func (l Limits) checkIdentityRef(k Key, r *keyspacev1.IdentityRef) error {
	if err := l.checkNumber(k, r.GetNumber()); err != nil {
		return err
	}
	if k.Kind == KindRetired {
		return agree(k, "number", NumberName(r.GetNumber()))
	}
	if h, err := hex.DecodeString(k.Names[0]); err != nil || len(h) != 32 || strings.ToLower(k.Names[0]) != k.Names[0] {
		return bad(k, ReasonKey, "%q is not a SHA-256 in lower-case hex", k.Names[0])
	}
	return nil
}

func (l Limits) checkServiceID(k Key, r *keyspacev1.ServiceID) error {
	if err := l.checkServiceNumber(k, r.GetNumber()); err != nil {
		return err
	}
	if err := checkVIPs(k, r.GetVips()); err != nil {
		return err
	}
	if r.GetNamespace() == "" || r.GetName() == "" {
		return bad(k, ReasonMismatch, "no namespace or no name")
	}
	return agree(k, "number", NumberName(r.GetNumber()))
}

// checkNumber checks that a number is one of the key's cluster.
func (l Limits) checkNumber(k Key, n uint32) error {
	if r := identity.Number(n); r <= identity.MaxReserved || r.IsLocal() {
		return bad(k, ReasonRange, "%d is not a number that a cluster gives", n)
	}
	if l.ClusterID == nil || l.Space.ClusterBits() == 0 {
		return nil
	}
	id := l.ClusterID(k.Cluster)
	if id == 0 {
		return nil
	}
	if first, last := l.Space.Range(id); identity.Number(n) < first || identity.Number(n) > last {
		return bad(k, ReasonRange, "%d is outside of %s's range %d-%d", n, k.Cluster, first, last)
	}
	return nil
}

// checkServiceNumber checks that a service's number is one of the key's cluster.
// Unlike an identity it does not cross the wire, so that its cluster part does
// not depend on the cluster bits.
func (l Limits) checkServiceNumber(k Key, n uint32) error {
	owner := ServiceOwner(n)
	if owner == 0 || n&(1<<ServiceIDBits-1) == 0 {
		return bad(k, ReasonRange, "%d is not a number that a cluster gives to a service", n)
	}
	if l.ClusterID == nil {
		return nil
	}
	if id := l.ClusterID(k.Cluster); id != 0 && id != owner {
		return bad(k, ReasonRange, "%d is of cluster id %d, %s has %d", n, owner, k.Cluster, id)
	}
	return nil
}

// ParseNumber reads a number as it stands in a key.
func ParseNumber(name string) (uint32, bool) {
	n, err := strconv.ParseUint(name, 10, 32)
	return uint32(n), err == nil && NumberName(uint32(n)) == name
}
