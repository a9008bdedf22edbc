// SPDX-License-Identifier: Apache-2.0

package policymodel

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/api"
)

// World makes random identities, endpoints and policies out of few values, so
// that everything overlaps.
type World struct{ *rand.Rand }

// NewWorld makes a World that is the same for equal seeds.
func NewWorld(seed uint64) World { return World{rand.New(rand.NewPCG(seed, 1))} }

// Pick is one of the values.
func Pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// Labels are those of a workload.
func (w World) Labels() labels.Set {
	ls := []labels.Label{
		{Source: labels.Mesh, Key: labels.ClusterKey, Value: Pick(w.Rand, "east", "east", "west")},
		{Source: labels.Mesh, Key: labels.NamespaceKey, Value: Pick(w.Rand, "demo", "other")},
	}
	if w.IntN(4) > 0 {
		ls = append(ls, labels.Label{Source: labels.Namespace, Key: "tier", Value: Pick(w.Rand, "a", "b", "c")})
	}
	for _, key := range []string{"app", "tier"} {
		if w.IntN(4) > 0 {
			ls = append(ls, labels.Label{Source: Pick(w.Rand, labels.Kubernetes, labels.CNI), Key: key, Value: Pick(w.Rand, "a", "b", "c")})
		}
	}
	return labels.New(ls...)
}

func (w World) requirement() api.Requirement {
	r := api.Requirement{
		Source:   Pick(w.Rand, labels.Any, labels.Any, labels.Kubernetes, labels.CNI),
		Key:      Pick(w.Rand, "app", "tier"),
		Operator: Pick(w.Rand, api.In, api.In, api.In, api.NotIn, api.Exists, api.DoesNotExist),
	}
	switch w.IntN(6) {
	case 0:
		r.Source, r.Key = labels.Mesh, labels.ClusterKey
	case 1:
		r.Source, r.Key = labels.Namespace, "tier" // which some workloads have as a label of their own
	}
	if r.Operator == api.In || r.Operator == api.NotIn {
		for range 1 + w.IntN(2) {
			v := Pick(w.Rand, "a", "b", "c")
			if r.Key == labels.ClusterKey {
				v = Pick(w.Rand, "east", "west")
			}
			r.Values = append(r.Values, v)
		}
	}
	return r
}

func (w World) selector() api.Selector {
	var reqs []api.Requirement
	for range w.IntN(3) {
		reqs = append(reqs, w.requirement())
	}
	return api.NewSelector(reqs...)
}

func (w World) part() api.Part {
	p := api.Part{Direction: Pick(w.Rand, datapath.Ingress, datapath.Egress), Deny: w.IntN(4) == 0, Path: fmt.Sprint(w.IntN(9))}
	switch w.IntN(7) {
	case 0:
		p.Peers.Any = true
	case 4:
		p.Direction = datapath.Egress
		p.Peers.Services = []string{w.Service()}
	case 1:
		for range 1 + w.IntN(2) {
			p.Peers.CIDRs = append(p.Peers.CIDRs, w.cidr())
		}
	case 2:
		for range 1 + w.IntN(2) {
			c := w.cidr()
			c.Block = true
			p.Peers.CIDRs = append(p.Peers.CIDRs, c)
		}
		p.Ports = []api.Port{{Protocol: Pick(w.Rand, api.TCP, api.UDP), Name: Pick(w.Rand, "web", "dns")}}
	case 3:
		p.Peers.Entities = append(p.Peers.Entities, Pick(w.Rand, api.EntityWorld, api.EntityCluster, api.EntityMesh,
			api.EntityHost, api.EntityRemoteNode, api.EntityHealth, api.EntityInit, api.EntityKubeAPIServer, api.EntityKubeAPIServer))
	default:
		for range w.IntN(3) {
			p.Peers.Selectors = append(p.Peers.Selectors, w.selector())
		}
	}
	for range w.IntN(3) {
		// The parser refuses what asks prefixes outside the mesh for names.
		outside := slices.ContainsFunc(p.Peers.CIDRs, func(c api.CIDR) bool { return !c.Block })
		if port := w.port(); port.Name == "" || p.Direction == datapath.Ingress || !outside {
			p.Ports = append(p.Ports, port)
		}
	}
	return p
}

func (w World) port() api.Port {
	if w.IntN(8) == 0 {
		proto := Pick(w.Rand, api.ICMP, api.ICMPv6)
		return api.Port{Protocol: proto, Port: api.ICMPPort(api.EchoRequest(proto))}
	}
	p := api.Port{Protocol: Pick(w.Rand, api.TCP, api.UDP, api.SCTP)}
	switch w.IntN(4) {
	case 0:
		p.Name = Pick(w.Rand, "web", "dns")
	case 1:
		p.Port = uint16(1 + w.IntN(90))
		p.End = p.Port + 1 + uint16(w.IntN(100))
		if w.IntN(4) == 0 {
			p.End = 65535
		}
	default:
		p.Port = Pick[uint16](w.Rand, 0, 80, 81)
	}
	return p
}

// Names are what a workload calls its ports.
func (w World) Names() (out []NamedPort) {
	for range w.IntN(3) {
		out = append(out, NamedPort{Pick(w.Rand, "web", "dns"), Pick(w.Rand, api.TCP, api.UDP, api.SCTP), Pick[uint16](w.Rand, 80, 82)})
	}
	return out
}

func (w World) cidr() api.CIDR {
	all := []string{"0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "10.0.0.2/32", "192.0.2.0/24", "::/0", "2001:db8::/32"}
	c := api.CIDR{Prefix: netip.MustParsePrefix(Pick(w.Rand, all...)), Block: w.IntN(2) == 0}
	for _, e := range all {
		if p := netip.MustParsePrefix(e); w.IntN(3) == 0 && p.Bits() > c.Prefix.Bits() && c.Prefix.Contains(p.Addr()) {
			c.Except = append(c.Except, p)
		}
	}
	return c
}

// APIServers are prefixes that the entity kube-apiserver means.
func (w World) APIServers() (out []netip.Prefix) {
	for range w.IntN(3) {
		out = append(out, netip.MustParsePrefix(Pick(w.Rand, "10.0.0.2/32", "10.0.0.4/30", "192.0.2.9/32", "198.51.100.1/32", "2001:db8::1/128")))
	}
	return out
}

// Object is a policy object of one of four names.
func (w World) Object() api.Object {
	o := api.Object{Kind: api.KindRuleArray, Namespace: api.ClusterWide,
		Name: Pick(w.Rand, "one", "two", "three", "four"), Source: fmt.Sprint(w.Uint64())}
	for i := range 1 + w.IntN(2) {
		r := api.Rule{Path: fmt.Sprintf("[%d]", i), Endpoints: w.selector(),
			DefaultDeny: [2]bool{w.IntN(3) > 0, w.IntN(3) > 0}}
		for range w.IntN(4) {
			r.Parts = append(r.Parts, w.part())
		}
		o.Rules = append(o.Rules, r)
	}
	return o
}

// Service is the name of one of two services.
func (w World) Service() string { return Pick(w.Rand, "demo/echo", "demo/db") }

// Served is who serves a service: workloads, nodes, and addresses outside.
func (w World) Served() (s Served) {
	for range w.IntN(4) {
		s.IDs = append(s.IDs, Workload(w.IntN(Workloads)))
	}
	if w.IntN(4) == 0 {
		s.IDs = append(s.IDs, identity.RemoteNode)
	}
	for range w.IntN(3) {
		s.Outside = append(s.Outside, netip.MustParseAddr(Pick(w.Rand, "10.1.2.3", "192.0.2.9", "198.51.100.1", "2001:db8::1")))
	}
	return s
}

// Workloads is how many workloads there may be.
const Workloads = 12

// Workload is the identity of one.
func Workload(i int) identity.Number { return identity.Number(65536 + i) }

// Peers are who packets come from and go to: reserved identities, workloads
// (whether they are there or not), and addresses outside.
func Peers() (out []Far) {
	for _, n := range []identity.Number{1, 2, 3, 4, 5, 6, 9, 10} {
		out = append(out, Far{ID: n})
	}
	for i := range Workloads {
		out = append(out, Far{Workload(i), netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})})
	}
	for _, a := range []string{"10.1.2.3", "10.1.2.4", "10.1.9.9", "10.9.9.9", "192.0.2.9", "198.51.100.1", "2001:db8::1", "2001:db9::1"} {
		out = append(out, Far{Addr: netip.MustParseAddr(a)})
	}
	return out
}
