// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

const tunnelPort = 8472

// forges expects that what a pod sends is dropped as a tunnel packet that it may
// not make, and that it leaves nothing behind: no flow, no port of the node.
func (h *harness) forges(ls []gopacket.SerializableLayer) datapath.Event {
	h.t.Helper()
	e := h.dropped(h.fromPod(podA, h.sent(podA, ls)), maps.DropForgedTunnel)
	if e.Program != "from_pod" || e.Endpoint != h.eps[podA.name].ID || e.SourceID != idA {
		h.t.Errorf("event %+v", e)
	}
	return e
}

// A pod speaks to no tunnel endpoint as one: outside it has the node's address, which
// endpoints believe. Not directly, not through a service, in fragments or in answers;
// and not in a flow that was there before the endpoint.
func TestPodForgesNoTunnel(t *testing.T) {
	h := newHarness(t)
	h.outbound()
	early := datagram(podA.ip, lan, 1000, tunnelPort, 50)
	h.masked(h.fromPod(podA, h.sent(podA, early)), lan, tunnelPort)
	h.passed(h.fromOverlay(h.plain(datagram(lan, podA.ip, tunnelPort, 1001, 50))))
	answer := datagram(podA.ip, lan, 1001, tunnelPort, 50)
	if r := h.fromPod(podA, h.sent(podA, answer)); r.act != actOK {
		t.Fatalf("an answer: verdict %d, want the stack", r.act)
	}
	h.addExternal()
	if e := h.forges(early); !isFlow(e, podA.ip+":1000", lan+":8472") || e.DestID != identity.World {
		t.Errorf("event %+v", e)
	}
	h.forges(answer)
	h.forgetFlows()

	h.forges(datagram(podA.ip, lan, 1002, tunnelPort, 50))
	h.forges(datagram(podA.ip, lanHost, 1002, tunnelPort, 50)) // behind it, and it may be its own there
	h.forges(datagram(podA.ip, "10.7.1.9", 1002, tunnelPort, 50))
	h.forges(datagram(podA.ip, node2, 1002, tunnelPort, 50))
	h.forges(datagram(podA.ip, node3, 1002, tunnelPort, 50))
	big := datagram(podA.ip, lan, 1003, tunnelPort, 3000)
	h.forges(fragment(t, big, 1, 0, 1400))
	h.forges(fragment(t, big, 1, 1400, whole))
	k := datapath.FrontendKey{Addr: addr(vip), Port: 53, Protocol: udp}
	h.tables.Frontends.Set(k, datapath.Frontend{Service: 3, Backends: []datapath.Backend{{Addr: addr(lan), Port: tunnelPort}}})
	h.sync()
	if e := h.forges(datagram(podA.ip, vip, 1004, 53, 50)); e.DestID != identity.World {
		t.Errorf("event %+v", e)
	}
	if flows, open := h.flows(); len(flows) != 0 || open != 0 {
		t.Errorf("%d and %d flows are left behind", len(flows), open)
	}

	// It is that port of those addresses, and UDP; and who is no endpoint is nobody's business.
	h.masked(h.fromPod(podA, h.sent(podA, datagram(podA.ip, lan, 1005, tunnelPort+1, 50))), lan, tunnelPort+1)
	h.masked(h.fromPod(podA, h.sent(podA, segment(podA.ip, lan, 1005, tunnelPort, "S"))), lan, tunnelPort)
	h.masked(h.fromPod(podA, h.sent(podA, datagram(podA.ip, outside, 1005, tunnelPort, 50))), outside, tunnelPort)
	h.passed(h.fromPod(podA, h.sent(podA, datagram(podA.ip, podB.ip, 1005, tunnelPort, 50))))
	h.passed(h.fromPod(podA, h.sent(podA, datagram(podA.ip, podR.ip, 1005, tunnelPort, 50))))
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, lanHost, 1005, tunnelPort, "S"))))
	h.passed(h.fromHost(h.plain(datagram(self, lanHost, 1005, tunnelPort, 50))))

	// Withdrawn, it is the outside.
	h.tables.Nodes.Delete(netip.MustParseAddr(lan))
	for _, p := range []string{"10.7.0.0/16", "10.7.1.0/24"} {
		h.tables.IPCache.Delete(key(p))
	}
	h.sync()
	h.masked(h.fromPod(podA, h.sent(podA, datagram(podA.ip, lan, 1006, tunnelPort, 50))), lan, tunnelPort)
}

// Without masquerade the stack would route it, by whatever device.
func TestPodForgesNoTunnelUnmasked(t *testing.T) {
	h := newHarnessWith(t, loader.Config{MapSizes: loader.SmallMaps()})
	h.outbound()
	h.addExternal()
	h.forges(datagram(podA.ip, lan, 1000, tunnelPort, 50))
}
