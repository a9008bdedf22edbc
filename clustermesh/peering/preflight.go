// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	maxSkew       = 5 * time.Second
	caSoon        = 30 * 24 * time.Hour
	encryptionOff = "off"
)

// Candidate is a cluster that asks to become a peer, as it describes itself.
type Candidate struct {
	Cluster *keyspacev1.Cluster
	Bundle  []*x509.Certificate
	Skew    time.Duration // its clock minus ours; 0 if unknown
}

// Side is who judges: our own description, CA and present peers.
type Side struct {
	Own   *keyspacev1.Cluster
	CA    []*x509.Certificate
	Peers []*keyspacev1.Peer
	// Unreadable are the Peers of which only what they have published is known.
	Unreadable map[string]*UnreadableError
	Now        time.Time
	TokenID    string // a pending peer made by this token is the candidate itself
}

// findings collects the results of one preflight.
type findings struct {
	peer string
	list []*federationv1.Finding
}

func (f *findings) add(blocking bool, check, problem, fix string) {
	f.list = append(f.list, &federationv1.Finding{
		Check: check, Blocking: blocking, Object: f.peer, Problem: problem, Fix: fix,
	})
}

// Preflight lists what stands against the candidate as a peer of ours. Blocking
// findings must stop the join.
func Preflight(s Side, c Candidate) []*federationv1.Finding {
	f := &findings{peer: c.Cluster.GetName()}
	if checkSizes(f, c.Cluster); len(f.list) > 0 {
		return f.list // what else is wrong with thousands of ranges is as much
	}
	checkNames(f, s, c)
	checkUnreadable(f, s, c.Cluster.GetName())
	checkMesh(f, s.Own, c.Cluster)
	checkRanges(f, s, c.Cluster)
	checkFamilies(f, s.Own, c.Cluster)
	checkVersions(f, s.Own.GetVersion(), c.Cluster.GetVersion())
	checkCAs(f, s, c)
	if c.Skew.Abs() > maxSkew {
		f.add(false, "clock-skew", fmt.Sprintf("its clock is %s %s ours", c.Skew.Abs().Round(time.Second), map[bool]string{true: "ahead of", false: "behind"}[c.Skew > 0]),
			"set both clocks by NTP")
	}
	return f.list
}

// Again is the preflight of a cluster that is a peer already: as it describes
// itself by now, if that has arrived, else as it joined.
func Again(ctx context.Context, d Deps, p *keyspacev1.Peer, all []*keyspacev1.Peer, skew time.Duration) (Result, error) {
	own := d.Own()
	c := &keyspacev1.Cluster{
		Name: p.GetName(), Id: p.GetClusterId(), PodCidrs: p.GetGrant().GetPodCidrs(), NodeCidrs: p.GetGrant().GetNodeCidrs(),
		Mesh: own.GetMesh(), Version: own.GetVersion(),
	}
	kv, _, err := d.Store.kv.Get(ctx, kvstore.NewKey(kvstore.State, p.GetName(), kvstore.KindCluster).String())
	if err != nil {
		return Result{}, fmt.Errorf("preflight of %s: %w", p.GetName(), err)
	}
	if kv != nil {
		mirrored := &keyspacev1.Cluster{}
		if proto.Unmarshal(kv.Value, mirrored) == nil {
			c = mirrored
		}
	}
	bundle, err := parseBundle(p.GetTrustBundle())
	if err != nil {
		return Result{}, fmt.Errorf("preflight of %s: %w", p.GetName(), err)
	}
	others := slices.DeleteFunc(slices.Clone(all), func(o *keyspacev1.Peer) bool { return o.GetName() == p.GetName() })
	fs := Preflight(Side{Own: own, CA: d.Creds.CA(), Peers: others, Now: d.Now()}, Candidate{Cluster: c, Bundle: bundle, Skew: skew})
	shakes := Handshakes(ctx, d.Trust, p.GetName(), p.GetEndpoints())
	return Result{Peer: c, Findings: append(fs, checkShakes(p.GetName(), shakes)...), Shakes: shakes}, nil
}

// Blocks reports whether a finding stops the join.
func Blocks(fs []*federationv1.Finding) bool {
	for _, f := range fs {
		if f.GetBlocking() {
			return true
		}
	}
	return false
}

// Explain is the text for an operator of what stopped a join with the peer.
func Explain(peer string, fs []*federationv1.Finding) string {
	var b strings.Builder
	for _, f := range fs {
		if f.GetBlocking() {
			fmt.Fprintf(&b, "cannot join %q: %s\n%s\n", peer, f.GetProblem(), f.GetFix())
		}
	}
	b.WriteString("nothing was changed on either side")
	return b.String()
}

func checkNames(f *findings, s Side, c Candidate) {
	name, id := c.Cluster.GetName(), c.Cluster.GetId()
	if err := kvstore.ValidateClusterName(name); err != nil {
		f.add(true, "name", fmt.Sprintf("its %v", err), "give the cluster a valid name")
	}
	if name == s.Own.GetName() {
		f.add(true, "name-clash", "it has our own name", "give one of the clusters another name")
	}
	if id == s.Own.GetId() {
		f.add(true, "id-clash", fmt.Sprintf("its cluster id %d is our own", id), "give one of the clusters another id")
	}
	for _, p := range s.Peers {
		if p.GetName() == name {
			if _, bad := s.Unreadable[name]; bad {
				continue // checkUnreadable says it
			}
			if s.TokenID == "" || p.GetTokenId() != s.TokenID {
				f.add(true, "name-clash", "there is already a peer of this name", "leave it first: hawser mesh leave "+name)
			}
			continue
		}
		if p.GetClusterId() == id {
			f.add(true, "id-clash", fmt.Sprintf("its cluster id %d is that of peer %q", id, p.GetName()), "give one of the clusters another id")
		}
	}
}

// checkSizes refuses what no record of a cluster, and of a peer, may hold.
func checkSizes(f *findings, c *keyspacev1.Cluster) {
	for _, l := range []struct {
		what string
		list []string
	}{{"pod", c.GetPodCidrs()}, {"node", c.GetNodeCidrs()}, {"service", c.GetServiceCidrs()}} {
		if len(l.list) > kvstore.MaxRanges {
			f.add(true, "cidr", fmt.Sprintf("it has %d %s CIDRs; at most %d are allowed", len(l.list), l.what, kvstore.MaxRanges), "declare fewer and wider ranges")
		}
	}
	if err := CheckEndpoints(c.GetEndpoints()); err != nil {
		f.add(true, "endpoints", fmt.Sprintf("its API server cannot be dialled: %v", err), "correct its federation endpoints")
	}
}

func checkMesh(f *findings, own, c *keyspacev1.Cluster) {
	o, m := own.GetMesh(), c.GetMesh()
	if o.GetClusterBits() != m.GetClusterBits() {
		f.add(true, "cluster-bits", fmt.Sprintf("it divides identities by %d cluster bits, we by %d", m.GetClusterBits(), o.GetClusterBits()),
			"clusters of one mesh must be created with the same number of cluster bits")
	} else if space, err := identity.NewSpace(m.GetClusterBits()); err != nil {
		f.add(true, "cluster-bits", "its "+err.Error(), "create the cluster with 8, 9 or 10 cluster bits")
	} else if c.GetId() == 0 || c.GetId() > space.MaxCluster() {
		f.add(true, "cluster-id", fmt.Sprintf("its cluster id %d is not within 1-%d", c.GetId(), space.MaxCluster()), "give it another id")
	}
	if o.GetTunnelProtocol() != m.GetTunnelProtocol() || o.GetTunnelPort() != m.GetTunnelPort() {
		f.add(true, "tunnel", fmt.Sprintf("its tunnels are %s on port %d, ours %s on port %d", m.GetTunnelProtocol(), m.GetTunnelPort(), o.GetTunnelProtocol(), o.GetTunnelPort()),
			"configure the same tunnel protocol and port on both sides")
	}
	if o.GetEncryption() != m.GetEncryption() {
		f.add(true, "encryption", fmt.Sprintf("its encryption is %q, ours %q", m.GetEncryption(), o.GetEncryption()), "configure the same encryption on both sides")
	}
	if e := m.GetEncryption(); e == "" || e == encryptionOff {
		for _, s := range append(append([]string(nil), own.GetNodeCidrs()...), c.GetNodeCidrs()...) {
			if p, err := netip.ParsePrefix(s); err == nil && !p.Addr().IsPrivate() && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
				f.add(false, "encryption", fmt.Sprintf("encryption is off and the node range %s is public: an identity is then only as trustworthy as the network between", p),
					"turn encryption on, or let only the two clusters' nodes reach the tunnel port")
			}
		}
	}
}

// ranged is a range with who has it and what for.
type ranged struct {
	owner, what string
	prefix      netip.Prefix
}

func checkRanges(f *findings, s Side, c *keyspacev1.Cluster) {
	taken := append(ranges("our own", "pod", s.Own.GetPodCidrs()), ranges("our own", "node", s.Own.GetNodeCidrs())...)
	taken = append(taken, ranges("our own", "service", s.Own.GetServiceCidrs())...)
	for _, p := range s.Peers {
		if p.GetName() == c.GetName() {
			continue
		}
		of := fmt.Sprintf("peer %q", p.GetName())
		taken = append(taken, ranges(of, "pod", p.GetGrant().GetPodCidrs())...)
		taken = append(taken, ranges(of, "node", p.GetGrant().GetNodeCidrs())...)
		taken = append(taken, ranges(of, "service", p.GetGrant().GetServiceCidrs())...)
	}
	for _, asked := range []struct {
		what string
		list []string
	}{{"pod", c.GetPodCidrs()}, {"node", c.GetNodeCidrs()}, {"service", c.GetServiceCidrs()}} {
		for _, text := range asked.list {
			p, err := netip.ParsePrefix(text)
			if err != nil || p != p.Masked() {
				f.add(true, "cidr", fmt.Sprintf("its %s CIDR %q is not a prefix", asked.what, text), "correct the range in its configuration")
				continue
			}
			if err := CheckRange(p); err != nil {
				f.add(true, asked.what+"-cidr-never-granted", fmt.Sprintf("its %s CIDR %s %v", asked.what, p, err), "declare the ranges that are really used")
				continue
			}
			for _, t := range taken {
				if p.Overlaps(t.prefix) {
					reportOverlap(f, asked.what, p, t)
				}
			}
		}
	}
}

// CheckRanges is the part of Preflight that is about ranges: all that stands
// against those that a cluster declares, beside our own and those of others.
func CheckRanges(own *keyspacev1.Cluster, others []*keyspacev1.Peer, c *keyspacev1.Cluster) error {
	f := &findings{peer: c.GetName()}
	checkRanges(f, Side{Own: own, Peers: others}, c)
	var errs []error
	for _, x := range f.list {
		if x.GetBlocking() {
			errs = append(errs, errors.New(x.GetProblem()))
		}
	}
	return errors.Join(errs...)
}

func reportOverlap(f *findings, what string, p netip.Prefix, t ranged) {
	blocking := what != "service" || t.what != "service"
	fix := fmt.Sprintf("ask %s for another %s range", f.peer, what)
	if !blocking {
		fix = "services keep their own cluster's addresses, so this may stay; do not route service addresses between the clusters"
	}
	f.add(blocking, what+"-cidr-overlap", fmt.Sprintf("its %s CIDR %s overlaps %s %s CIDR %s", what, p, t.owner, t.what, t.prefix), fix)
}

// checkFamilies tells when pods of the two clusters have one family in common
// only. IPv4 they always have.
func checkFamilies(f *findings, own, c *keyspacev1.Cluster) {
	ours, theirs := hasIPv6(own.GetPodCidrs()), hasIPv6(c.GetPodCidrs())
	switch {
	case ours && !theirs:
		f.add(false, "ip-families", "its pods have no IPv6 addresses, ours have: they reach each other by IPv4", "give it an IPv6 range too, or leave it: hawser-apiserver run --pod-cidr")
	case theirs && !ours:
		f.add(false, "ip-families", "its pods have IPv6 addresses, ours have none: they reach each other by IPv4", "give this cluster an IPv6 range too, or leave it: hawser-apiserver run --pod-cidr")
	}
}

func hasIPv6(cidrs []string) bool {
	return slices.ContainsFunc(cidrs, func(text string) bool {
		p, err := netip.ParsePrefix(text)
		return err == nil && p.Addr().Is6()
	})
}

func ranges(owner, what string, in []string) []ranged {
	var out []ranged
	for _, s := range in {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, ranged{owner, what, p.Masked()})
		}
	}
	return out
}

// checkVersions compares "v1.2.3"-like versions; development builds pass.
func checkVersions(f *findings, own, peer string) {
	if !CompatibleVersions(own, peer) {
		f.add(true, "version", fmt.Sprintf("it runs version %s, we %s: peers may differ by one minor version", peer, own), "upgrade the older cluster first")
	}
}

// CompatibleVersions reports whether clusters of two versions may be peers: they
// may differ by one minor version. What is not like v1.2.3 is a development build
// and passes.
func CompatibleVersions(a, b string) bool {
	aMajor, aMinor, ok1 := majorMinor(a)
	bMajor, bMinor, ok2 := majorMinor(b)
	if !ok1 || !ok2 {
		return true
	}
	diff := aMinor - bMinor
	return aMajor == bMajor && -1 <= diff && diff <= 1
}

func majorMinor(v string) (major, minor int, ok bool) {
	parts := strings.Split(strings.TrimPrefix(v, "v"), ".")
	if len(parts) < 2 {
		return 0, 0, false
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	return major, minor, err1 == nil && err2 == nil
}

func checkCAs(f *findings, s Side, c Candidate) {
	for _, cert := range c.Bundle {
		for _, own := range s.CA {
			if sameCA(cert, own) {
				f.add(true, "ca-reuse", fmt.Sprintf("its CA %q is our own", cert.Subject.CommonName), "clusters never share a CA: give it one of its own")
			}
		}
		for _, p := range s.Peers {
			theirs, err := parseBundle(p.GetTrustBundle())
			for _, t := range theirs {
				if err == nil && p.GetName() != c.Cluster.GetName() && sameCA(cert, t) {
					f.add(true, "ca-reuse", fmt.Sprintf("its CA %q is that of peer %q", cert.Subject.CommonName, p.GetName()), "clusters never share a CA: give it one of its own")
				}
			}
		}
		switch left := cert.NotAfter.Sub(s.Now); {
		case left <= 0:
			f.add(true, "certificate", fmt.Sprintf("its CA expired at %s", cert.NotAfter.Format(time.RFC3339)), "renew the CA")
		case left < caSoon:
			f.add(false, "certificate", fmt.Sprintf("its CA expires at %s", cert.NotAfter.Format(time.RFC3339)), "rotate the CA soon: hawser mesh rotate-ca")
		}
	}
}

// sameCA also sees one key under two certificates: it could sign for both.
func sameCA(a, b *x509.Certificate) bool {
	return a.Equal(b) || string(a.RawSubjectPublicKeyInfo) == string(b.RawSubjectPublicKeyInfo)
}
