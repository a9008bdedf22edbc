// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/kvstore"
)

// Default maxima of a grant, per kind.
const (
	DefaultMaxNodes      = 5_000
	DefaultMaxIdentities = 65_535
	DefaultMaxIPs        = 250_000
	DefaultMaxServices   = 10_000
	DefaultMaxBackends   = 100_000
	// maxUnknown bounds the keys of kinds that this version does not know.
	maxUnknown = 10_000
)

// GrantFor is what a cluster may publish here by what it declares: pinned when
// it joins, so that what it declares later changes nothing.
func GrantFor(c *keyspacev1.Cluster) (*keyspacev1.Grant, error) {
	space, err := identity.NewSpace(c.GetMesh().GetClusterBits())
	if err != nil {
		return nil, fmt.Errorf("grant of %s: %w", c.GetName(), err)
	}
	if c.GetId() == 0 || c.GetId() > space.MaxCluster() {
		return nil, fmt.Errorf("grant of %s: cluster id %d is not within 1-%d", c.GetName(), c.GetId(), space.MaxCluster())
	}
	first, last := space.Range(c.GetId())
	return &keyspacev1.Grant{
		PodCidrs: slices.Clone(c.GetPodCidrs()), NodeCidrs: slices.Clone(c.GetNodeCidrs()),
		IdentityMin: uint32(first), IdentityMax: uint32(last),
		MaxNodes: DefaultMaxNodes, MaxIdentities: DefaultMaxIdentities, MaxIps: DefaultMaxIPs,
		MaxServices: DefaultMaxServices, MaxBackends: DefaultMaxBackends, Explain: true, Diff: proto.Bool(true),
		ServiceCidrs: slices.Clone(c.GetServiceCidrs()), ServiceCidrsPinned: true,
	}, nil
}

// MayDiff reports whether the peer may compare its copy of our records with them.
// Grants of before say nothing of it, and then it may.
func MayDiff(g *keyspacev1.Grant) bool { return g.Diff == nil || g.GetDiff() }

// Guard judges what one peer publishes by its grant. It is immutable and safe
// for concurrent use.
type Guard struct {
	peer        string
	id          uint32
	grant       *keyspacev1.Grant
	pods, nodes rangeSet
	services    rangeSet
	inForce     *keyspacev1.Grant
}

// NewGuard makes the Guard of a peer. taken are ranges that no peer is ever
// granted: our own and those of other peers. A granted range that CheckRange
// refuses, or that overlaps one of them, is left out of what is granted and named
// in the error; the Guard is usable nevertheless. Two service ranges may overlap:
// each cluster gives its services addresses of its own.
func NewGuard(p *keyspacev1.Peer, taken []TakenRange) (*Guard, error) {
	g := &Guard{peer: p.GetName(), id: p.GetClusterId(), grant: p.GetGrant()}
	var errs []error
	keep := func(what string, in []string) rangeSet {
		var out []netip.Prefix
		for _, s := range in {
			pfx, err := netip.ParsePrefix(s)
			if err == nil {
				pfx = pfx.Masked()
				err = CheckRange(pfx)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("grant of %s: %s CIDR %s %w", g.peer, what, s, err))
				continue
			}
			if t, ok := overlapping(what, pfx, taken); ok {
				errs = append(errs, fmt.Errorf("grant of %s: %s CIDR %s overlaps %s, which is not its own", g.peer, what, s, t))
				continue
			}
			out = append(out, pfx)
		}
		return newRangeSet(out)
	}
	g.pods = keep("pod", p.GetGrant().GetPodCidrs())
	g.nodes = keep("node", p.GetGrant().GetNodeCidrs())
	g.services = keep(serviceRange, p.GetGrant().GetServiceCidrs())
	g.inForce = proto.CloneOf(g.grant)
	if g.inForce != nil {
		g.inForce.PodCidrs, g.inForce.NodeCidrs, g.inForce.ServiceCidrs = texts(g.pods.list), texts(g.nodes.list), texts(g.services.list)
	}
	return g, errors.Join(errs...)
}

// InForce is the grant with only those of its ranges that are granted indeed. It
// is not to be changed.
func (g *Guard) InForce() *keyspacev1.Grant { return g.inForce }

func texts(in []netip.Prefix) []string {
	out := make([]string, len(in))
	for i, p := range in {
		out[i] = p.String()
	}
	return out
}

// Hash tells the Guards of different grants apart.
func (g *Guard) Hash() []byte { return GrantHash(g.grant) }

// Check says why a record may not be published by the peer, or nil. The record
// may be nil for kinds that this version does not know. The error is a
// *kvstore.BadRecord, its reason one of Reasons.
func (g *Guard) Check(k kvstore.Key, rec proto.Message) error {
	if k.Subtree != kvstore.State || k.Cluster != g.peer {
		return &kvstore.BadRecord{Key: k.String(), Reason: ReasonForeign, Detail: fmt.Sprintf("not below state/%s/", g.peer)}
	}
	if reason, err := g.check(rec); err != nil {
		return &kvstore.BadRecord{Key: k.String(), Reason: reason, Detail: err.Error()}
	}
	return nil
}

func (g *Guard) check(rec proto.Message) (reason string, err error) {
	switch r := rec.(type) {
	case *keyspacev1.Cluster:
		return g.checkCluster(r)
	case *keyspacev1.Node:
		return g.checkNode(r)
	case *keyspacev1.Identity:
		return g.checkIdentity(r)
	case *keyspacev1.IdentityRef:
		return kvstore.ReasonRange, g.number(r.GetNumber())
	case *keyspacev1.IPEntry:
		return g.checkIP(r)
	case *keyspacev1.VTEP:
		return kvstore.ReasonAddress, errors.Join(g.prefix(r.GetPrefix(), g.pods), g.tunnel(r.GetTunnelAddress()))
	case *keyspacev1.NodeHealth:
		if r.GetCluster() != g.peer {
			return ReasonForeign, fmt.Errorf("it is of a node of cluster %q; the peer is %q", r.GetCluster(), g.peer)
		}
	case *keyspacev1.Service:
		return ReasonNamespace, g.namespace(r.GetNamespace())
	case *keyspacev1.ServiceID:
		if owner := kvstore.ServiceOwner(r.GetNumber()); owner != g.id {
			return kvstore.ReasonRange, fmt.Errorf("service number %d is of cluster id %d, not %d", r.GetNumber(), owner, g.id)
		}
	case *keyspacev1.BackendSlice:
		if err := g.namespace(r.GetNamespace()); err != nil {
			return ReasonNamespace, err
		}
		for _, b := range r.GetBackends() {
			if err := g.address("backend", b.GetIp(), g.pods, g.nodes); err != nil {
				return kvstore.ReasonAddress, err
			}
		}
	}
	return "", nil
}

func (g *Guard) checkCluster(r *keyspacev1.Cluster) (string, error) {
	if r.GetName() != g.peer || r.GetId() != g.id {
		return ReasonForeign, fmt.Errorf("it says cluster %q, id %d; the peer is %q, id %d", r.GetName(), r.GetId(), g.peer, g.id)
	}
	return kvstore.ReasonAddress, errors.Join(g.prefixes(r.GetPodCidrs(), g.pods), g.prefixes(r.GetNodeCidrs(), g.nodes), g.serviceRanges(r.GetServiceCidrs()))
}

// serviceRanges checks what a Cluster record says of them: to addresses there
// that nobody has nothing is sent, so that another range cuts off whoever is
// behind it.
func (g *Guard) serviceRanges(in []string) error {
	if g.grant.GetServiceCidrsPinned() {
		return g.prefixes(in, g.services)
	}
	var errs []error
	for _, s := range in {
		p, err := netip.ParsePrefix(s)
		if err == nil {
			err = CheckRange(p)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("service range %s %w", s, err))
		}
		if len(errs) == maxSurplus {
			break
		}
	}
	return errors.Join(errs...)
}

func (g *Guard) checkNode(r *keyspacev1.Node) (string, error) {
	if r.GetCluster() != g.peer {
		return ReasonForeign, fmt.Errorf("it says cluster %q; the peer is %q", r.GetCluster(), g.peer)
	}
	errs := []error{g.prefixes(r.GetPodCidrs(), g.pods), g.tunnel(r.GetTunnelAddress())}
	for _, a := range r.GetAddresses() {
		granted := []rangeSet{g.nodes}
		if ip, err := netip.ParseAddr(a.GetIp()); err == nil && ip.Is6() {
			granted = append(granted, g.pods) // a node's own is the first of its pods' range
		}
		if err := g.address("node", a.GetIp(), granted...); err != nil {
			errs = append(errs, err)
		}
		if len(errs) > maxSurplus {
			break
		}
	}
	return kvstore.ReasonAddress, errors.Join(errs...)
}

func (g *Guard) checkIdentity(r *keyspacev1.Identity) (string, error) {
	if err := g.number(r.GetNumber()); err != nil {
		return kvstore.ReasonRange, err
	}
	set, err := labels.ParseSet(r.GetLabels(), labels.Any)
	if err != nil {
		return kvstore.ReasonLabels, err
	}
	for _, l := range set {
		switch l.Source {
		case labels.Reserved, labels.CIDR, labels.Any:
			return kvstore.ReasonLabels, fmt.Errorf("label %s: source %s never comes from a peer", l, l.Source)
		}
	}
	if c, _ := set.Get(labels.Mesh, labels.ClusterKey); c != g.peer {
		return kvstore.ReasonLabels, fmt.Errorf("its label mesh:cluster is %q; the peer is %q", c, g.peer)
	}
	ns, _ := set.Get(labels.Mesh, labels.NamespaceKey) // by which policies know it
	return ReasonNamespace, g.namespace(ns)
}

func (g *Guard) checkIP(r *keyspacev1.IPEntry) (string, error) {
	if err := errors.Join(g.prefix(r.GetPrefix(), g.pods, g.nodes), g.tunnel(r.GetTunnelAddress())); err != nil {
		return kvstore.ReasonAddress, err
	}
	if err := g.number(r.GetIdentity()); err != nil {
		return kvstore.ReasonRange, err
	}
	return ReasonNamespace, g.namespace(r.GetNamespace())
}

func (g *Guard) number(n uint32) error {
	if n < g.grant.GetIdentityMin() || n > g.grant.GetIdentityMax() {
		return fmt.Errorf("number %d is not within the granted %d-%d", n, g.grant.GetIdentityMin(), g.grant.GetIdentityMax())
	}
	return nil
}

func (g *Guard) namespace(ns string) error {
	if n := g.grant.GetNamespaces(); ns != "" && len(n) > 0 && !slices.Contains(n, ns) {
		return fmt.Errorf("namespace %q is not granted", ns)
	}
	return nil
}

// tunnel checks a tunnel address; an absent one is fine.
func (g *Guard) tunnel(addr string) error {
	if addr == "" {
		return nil
	}
	return g.address("tunnel", addr, g.nodes)
}

func (g *Guard) address(what, s string, granted ...rangeSet) error {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return fmt.Errorf("%s address %q: %w", what, s, err)
	}
	if slices.ContainsFunc(granted, func(s rangeSet) bool { return s.has(a) }) {
		return nil
	}
	return fmt.Errorf("%s address %s is not within a granted range", what, s)
}

// prefixes says what is wrong with the first of those that are not granted.
func (g *Guard) prefixes(in []string, granted ...rangeSet) error {
	var errs []error
	for _, s := range in {
		if err := g.prefix(s, granted...); err != nil {
			errs = append(errs, err)
		}
		if len(errs) == maxSurplus {
			break
		}
	}
	return errors.Join(errs...)
}

func (g *Guard) prefix(s string, granted ...rangeSet) error {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return fmt.Errorf("prefix %q: %w", s, err)
	}
	if slices.ContainsFunc(granted, func(s rangeSet) bool { return s.covers(p) }) {
		return nil
	}
	return fmt.Errorf("prefix %s is not within a granted range", s)
}

// Limit is the most keys of a kind that the peer may have here; for slices it
// is the number of backends in them.
func (g *Guard) Limit(k kvstore.Kind) uint64 {
	switch k {
	case kvstore.KindCluster:
		return 1
	case kvstore.KindNode, kvstore.KindHealth:
		return g.grant.GetMaxNodes()
	case kvstore.KindIdentity, kvstore.KindIdentityLabels:
		return g.grant.GetMaxIdentities()
	case kvstore.KindIP, kvstore.KindVTEP:
		return g.grant.GetMaxIps()
	case kvstore.KindService, kvstore.KindServiceID:
		return g.grant.GetMaxServices()
	case kvstore.KindSlice:
		return g.grant.GetMaxBackends()
	}
	return maxUnknown
}
