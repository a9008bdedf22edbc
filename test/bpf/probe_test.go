// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"testing"

	"github.com/gopacket/gopacket"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

const (
	probePort = 7
	askPort   = 49152
)

func probeQuestion(src, dst string) []gopacket.SerializableLayer {
	return datagram(src, dst, askPort, probePort, 24)
}

// A path probe is sent back as it came, but for its direction: it is answered
// without an agent and without a flow being remembered.
func TestProbeAnswered(t *testing.T) { makes(t, probeAnswered) }

func probeAnswered(t *testing.T, h *harness) {
	t.Helper()
	asked := h.tunnelled(node2, identity.Health, probeQuestion(node2, self))
	r := h.passed(h.fromOverlay(asked))
	_, outer, _ := decode(t, r.out) // and its checksum
	if outer.SrcIP.String() != self || outer.DstIP.String() != node2 {
		t.Errorf("outer %s → %s", outer.SrcIP, outer.DstIP)
	}
	const vxlan, inner = 14 + 20 + 8, 14 + 20 + 8 + 8
	if vni := r.out[vxlan+4:][:3]; !bytes.Equal(vni, []byte{0, 0, byte(identity.Health)}) {
		t.Errorf("VNI %x, want health", vni)
	}
	_, i, l4 := decode(t, r.out[inner:])
	sport, dport := ports(l4)
	if i.SrcIP.String() != self || i.DstIP.String() != node2 || sport != probePort || dport != askPort {
		t.Errorf("inner %s:%d → %s:%d", i.SrcIP, sport, i.DstIP, dport)
	}
	if len(r.out) != len(asked) || !bytes.Equal(r.out[inner+14+28:], asked[inner+14+28:]) {
		t.Errorf("the answer is not what was asked: %x", r.out)
	}
	if all, _ := h.flows(); len(all) != 0 {
		t.Errorf("probes made flows: %v", all)
	}
}

// An answer is for the socket that asked, from whichever port; nobody answers it
// again.
func TestProbeAnswerPasses(t *testing.T) { makes(t, probeAnswerPasses) }

func probeAnswerPasses(t *testing.T, h *harness) {
	t.Helper()
	in := h.tunnelled(node2, identity.Health, datagram(node2, self, probePort, askPort, 24))
	const sport, dport = 14 + 20, 14 + 20 + 2
	for _, from := range [][]byte{{0x9C, 0x40}, {0x21, 0x18}} { // 40000, and the tunnel's own
		copy(in[sport:], from)
		want := bytes.Clone(in)
		copy(want[sport:], in[dport:dport+2])
		copy(want[dport:], from)
		if r := h.fromOverlay(in); r.act != actOK || !bytes.Equal(r.out, want) {
			t.Errorf("verdict %d, %x, want %x", r.act, r.out, want)
		}
	}
}

func TestProbeForged(t *testing.T) { makes(t, probeForged) }

func probeForged(t *testing.T, h *harness) {
	t.Helper()
	for name, c := range map[string]struct {
		node     string
		id       identity.Number
		src, dst string
		from, to uint16
		reason   datapath.DropReason
	}{
		"question of a stranger":               {"192.0.2.99", identity.Health, "192.0.2.99", self, askPort, probePort, maps.DropUnknownSender},
		"answer of a stranger":                 {"192.0.2.99", identity.Health, "192.0.2.99", self, probePort, askPort, maps.DropUnknownSender},
		"stranger in a node's name":            {"192.0.2.99", identity.Health, node2, self, probePort, askPort, maps.DropUnknownSender},
		"question in another node's name":      {node2, identity.Health, node3, self, askPort, probePort, maps.DropSpoofedSource},
		"answer in another node's name":        {node2, identity.Health, node3, self, probePort, askPort, maps.DropSpoofedSource},
		"question for another node":            {node2, identity.Health, node2, node3, askPort, probePort, maps.DropUnknownDestination},
		"answer for another node":              {node2, identity.Health, node2, node3, probePort, askPort, maps.DropUnknownDestination},
		"question for a pod":                   {node2, identity.Health, node2, podA.ip, askPort, probePort, maps.DropUnknownDestination},
		"from a pod":                           {node2, identity.Health, podR.ip, self, askPort, probePort, maps.DropSpoofedSource},
		"question and answer at once":          {node2, identity.Health, node2, self, probePort, probePort, maps.DropMalformed},
		"with a pod's identity and its source": {node2, idR, node2, self, probePort, askPort, maps.DropSpoofedSource},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			h.dropped(h.fromOverlay(h.tunnelled(c.node, c.id, datagram(c.src, c.dst, c.from, c.to, 24))), c.reason)
		})
	}
}

// Too short to be one: the program must not read past its end.
func TestProbeCut(t *testing.T) { makes(t, probeCut) }

func probeCut(t *testing.T, h *harness) {
	t.Helper()
	whole := h.tunnelled(node2, identity.Health, probeQuestion(node2, self))
	for n := len(whole) - 1; n > 14+20+8; n-- {
		r := h.fromOverlay(whole[:n])
		if minimal := 14 + 50 + 20 + 8; n < minimal && r.act == actRedirect {
			t.Errorf("%d bytes were answered", n)
		}
	}
}
