// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/testutil/policymodel"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

// judged is one node under random policies: the engine's rule sets in the kernel,
// and the model beside them.
type judged struct {
	*harness
	w      policymodel.World
	e      *policy.Engine
	m      *policymodel.Model
	ep     policymodel.Endpoint // podA as policy sees it
	held   bool
	sport  uint16
	device map[string]uint32
	cases  int
	denied int
}

// localPeer is the workload that is podB; the others are behind node 2.
const localPeer = 1

// TestProgramsAgreeWithModel changes policies, identities, services and an
// endpoint at random, brings what the engine makes of them into the kernel through
// the reconciler, and compares the programs' verdict on every packet with the
// model's, which knows neither.
func TestProgramsAgreeWithModel(t *testing.T) {
	const seeds, steps = 24, 18
	cases, denied := 0, 0
	h := newHarness(t)
	for _, p := range []string{"10.1.0.0/16", "10.2.0.0/16", podB.ip + "/32"} {
		h.tables.IPCache.Delete(key(p)) // the prefixes of the policies are outside the mesh
	}
	for seed := range uint64(seeds) {
		j := newJudged(t, h, 1000+seed)
		for range steps {
			for range 1 + j.w.IntN(4) {
				j.change()
			}
			j.publish()
			if err := j.compare(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		j.clear()
		cases, denied = cases+j.cases, denied+j.denied
	}
	t.Logf("%d packets judged under %d random states, %d of them denied", cases, seeds*steps, denied)
	if denied < cases/20 || denied > cases*19/20 {
		t.Errorf("%d of %d packets denied: the policies say too little", denied, cases)
	}
}

func newJudged(t *testing.T, h *harness, seed uint64) *judged {
	w := policymodel.NewWorld(seed)
	mesh := w.IntN(2) == 0
	e, err := policy.New(policy.Config{Cluster: "east", Scope: map[bool]policy.Scope{true: policy.ScopeMesh, false: policy.ScopeLocal}[mesh]})
	if err != nil {
		t.Fatal(err)
	}
	return &judged{harness: h, w: w, e: e, m: policymodel.New("east", mesh), sport: 1024,
		device: map[string]uint32{podA.name: h.ifindex(podA.name), podB.name: h.ifindex(podB.name), "eth0": h.ifindex("eth0"), "hawser_net": h.ifindex("hawser_net")}}
}

func workloadAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }

func workloadAddr6(i int) netip.Addr { return netip.AddrFrom16([16]byte{0: 0xFD, 1: 1, 15: byte(i)}) }

// peers are the model's, and those that are in the mesh once more with an IPv6
// address.
func peers() (out []policymodel.Far) {
	out = policymodel.Peers()
	for i := range policymodel.Workloads {
		out = append(out, policymodel.Far{ID: policymodel.Workload(i), Addr: workloadAddr6(i)})
	}
	return append(out, policymodel.Far{ID: identity.Host, Addr: addr(self6)}, policymodel.Far{ID: identity.RemoteNode, Addr: addr(node26)})
}

func (j *judged) change() {
	i := j.w.IntN(policymodel.Workloads)
	n := policymodel.Workload(i)
	switch j.w.IntN(10) {
	case 0, 1, 2:
		ls := j.w.Labels()
		cluster, _ := ls.Get(labels.Mesh, labels.ClusterKey)
		if err := j.e.UpsertIdentity(n, cluster, ls); err != nil {
			j.t.Fatal(err)
		}
		j.m.Identities[n] = ls
	case 3:
		j.e.DeleteIdentity(n)
		delete(j.m.Identities, n)
		delete(j.m.Ports, n)
	case 4, 5, 6:
		o := j.w.Object()
		j.e.UpsertObject(o)
		j.m.Objects[o.ID()] = o
		names, _ := j.e.Services()
		for _, name := range names {
			j.e.SetService(name, j.m.Services[name].IDs, j.m.Services[name].Outside)
		}
	case 7:
		name, served := j.w.Service(), j.w.Served()
		j.m.Services[name] = served
		j.e.SetService(name, served.IDs, served.Outside)
	case 8:
		if _, ok := j.m.Identities[n]; ok {
			j.m.Ports[n] = j.w.Names()
			j.e.SetNamedPorts(n, namedPorts(j.m.Ports[n]))
			for _, a := range []netip.Addr{workloadAddr(i), workloadAddr6(i)} {
				j.m.AddrPorts[a] = j.m.Ports[n]
				j.e.SetAddressPorts("east", a, namedPorts(j.m.Ports[n]))
			}
		}
	case 9:
		j.moveEndpoint()
	}
}

func namedPorts(in []policymodel.NamedPort) (out []policy.NamedPort) {
	for _, p := range in {
		out = append(out, policy.NamedPort(p))
	}
	return out
}

// moveEndpoint gives podA other labels, and so another rule set.
func (j *judged) moveEndpoint() {
	old := j.ep
	j.ep = policymodel.Endpoint{Labels: j.w.Labels(), Ports: j.w.Names()}
	id, err := j.e.AcquireRuleSet(j.ep.Labels, namedPorts(j.ep.Ports)...)
	if err != nil {
		j.t.Fatal(err)
	}
	ep := j.eps[podA.name]
	ep.RuleSet = id
	j.e.Publish(j.tables.RuleSets)
	j.tables.Endpoints.Set(ep.ID, ep)
	if j.held {
		j.sync() // the old one goes when nobody refers to it
		j.e.ReleaseRuleSet(old.Labels, namedPorts(old.Ports)...)
	}
	j.held = true
}

// publish does what an agent does after a batch.
func (j *judged) publish() {
	if !j.held {
		j.moveEndpoint()
	}
	for i := range policymodel.Workloads {
		n, a := policymodel.Workload(i), datapath.IPKey{Prefix: netip.PrefixFrom(workloadAddr(i), 32)}
		a6 := datapath.IPKey{Prefix: netip.PrefixFrom(workloadAddr6(i), 128)}
		if _, ok := j.m.Identities[n]; !ok {
			j.tables.Identities.Delete(n)
			j.tables.IPCache.Delete(a)
			j.tables.IPCache.Delete(a6)
			continue
		}
		j.tables.Identities.Set(n, datapath.Identity{Number: n, ClusterID: 1})
		if i != localPeer {
			j.tables.IPCache.Set(a, datapath.IPEntry{Identity: n, Tunnel: netip.MustParseAddr(node2)})
			j.tables.IPCache.Set(a6, datapath.IPEntry{Identity: n, Tunnel: netip.MustParseAddr(node2)})
		}
	}
	local := j.eps[podB.name]
	local.Addrs, local.Identity = []netip.Addr{workloadAddr(localPeer), workloadAddr6(localPeer)}, policymodel.Workload(localPeer)
	j.tables.Endpoints.Set(local.ID, local)
	j.e.Publish(j.tables.RuleSets)
	for _, c := range j.e.CIDRChanges() {
		k := datapath.IPKey{Prefix: c.Prefix}
		if c.Block {
			k.ClusterID = datapath.BlockSpace
		} else if c.Prefix == netip.PrefixFrom(workloadAddr(2), 32) {
			continue // the mesh has it
		}
		if c.Gone {
			j.tables.IPCache.Delete(k)
		} else {
			j.tables.IPCache.Set(k, datapath.IPEntry{Identity: c.Number})
		}
	}
	j.sync()
}

// clear leaves nothing behind for the next seed.
func (j *judged) clear() {
	for _, o := range j.m.Objects {
		j.e.DeleteObject(o.Namespace, o.Name)
	}
	clear(j.m.Identities)
	j.publish()
}

// compare sends every packet, each of a flow of its own.
func (j *judged) compare() error {
	var failed error
	j.in(func() error {
		for _, peer := range peers() {
			if !j.reachable(peer) {
				continue
			}
			for _, d := range []datapath.Direction{datapath.Ingress, datapath.Egress} {
				for _, port := range []uint16{1, 63, 64, 80, 81, 82, 150, 40000} {
					for _, proto := range []uint8{api.TCP, api.UDP, api.SCTP} {
						if failed = j.one(d, peer, proto, port); failed != nil {
							return nil
						}
					}
				}
				proto, kinds := api.ICMP, []uint8{8, 0}
				if peer.Addr.Is6() {
					proto, kinds = api.ICMPv6, []uint8{128, 129}
				}
				for _, kind := range kinds {
					if failed = j.one(d, peer, proto, api.ICMPPort(kind)); failed != nil {
						return nil
					}
				}
			}
		}
		return nil
	})
	return failed
}

// reachable leaves out who has no address here: reserved identities but the host
// and other nodes, and workloads that are not there.
func (j *judged) reachable(peer policymodel.Far) bool {
	if peer.ID <= identity.MaxReserved && peer.ID != 0 {
		return peer.ID == identity.Host || peer.ID == identity.RemoteNode
	}
	_, known := j.m.Identities[peer.ID]
	return known || peer.ID == 0
}

func (j *judged) one(d datapath.Direction, peer policymodel.Far, proto uint8, port uint16) error {
	if j.sport++; j.sport < 1024 || j.sport == 40000 {
		j.sport = 1025 // never a port that somebody is asked for
	}
	if !peer.Addr.IsValid() {
		peer.Addr = addr(map[identity.Number]string{identity.Host: self, identity.RemoteNode: node2}[peer.ID])
	}
	src, dst := peer.Addr.String(), podA.ip
	if peer.Addr.Is6() {
		dst = podA6.ip
	}
	if d == datapath.Egress {
		src, dst = dst, src
	}
	packet := segment(src, dst, j.sport, port, "S")
	switch proto {
	case api.UDP:
		packet = datagram(src, dst, j.sport, port, 4)
	case api.SCTP:
		packet = chunk(src, dst, j.sport, port, 4)
	case api.ICMP, api.ICMPv6:
		packet = echoOf(src, dst, j.sport)
		if kind := uint8(port); kind != api.EchoRequest(proto) {
			packet = echoReplyOf(src, dst, j.sport)
		}
	}
	prog, dev, frame := j.enter(d, peer, packet)
	ret, err := prog.Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: skb{IfIndex: j.device[dev]}})
	if err != nil {
		return fmt.Errorf("run %s: %w", prog, err)
	}
	want := j.m.Allowed(j.ep, d, peer, proto, port)
	j.cases++
	if !want {
		j.denied++
	}
	if got := int32(ret) != actShot; got != want {
		return fmt.Errorf("%s of %s %v, peer %+v (%s), %d/%d: the programs say allow=%v, the model %v",
			d, j.ep.Labels, j.ep.Ports, peer, j.m.Identities[peer.ID], proto, port, got, want)
	}
	return nil
}

// enter is where a packet meets the datapath.
func (j *judged) enter(d datapath.Direction, peer policymodel.Far, packet []gopacket.SerializableLayer) (*ebpf.Program, string, []byte) {
	progs := j.d.Programs()
	switch {
	case d == datapath.Egress:
		return progs.FromPod, podA.name, j.sent(podA, packet)
	case peer.ID == identity.Host:
		return progs.FromHost, "hawser_net", j.plain(packet)
	case peer.ID == policymodel.Workload(localPeer):
		return progs.FromPod, podB.name, j.sent(podB, packet)
	case peer.ID != 0:
		return progs.FromOverlay, "eth0", j.tunnelled(node2, peer.ID, packet)
	}
	return progs.FromOverlay, "eth0", j.plain(packet)
}
