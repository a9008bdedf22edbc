// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
)

// fuzzPackets is how many packets each program gets.
const fuzzPackets = 20000

// mutate changes a packet: bits, bytes, words that matter, its length.
func mutate(r *rand.Rand, p []byte) []byte {
	p = slices.Clone(p)
	for range 1 + r.IntN(4) {
		at := r.IntN(len(p))
		switch r.IntN(6) {
		case 0:
			p[at] ^= 1 << r.IntN(8)
		case 1:
			p[at] = byte(r.Uint32())
		case 2:
			p[at] = []byte{0, 1, 4, 0x45, 0x46, 0x60, 0x7F, 0xFF}[r.IntN(8)]
		case 3:
			p = p[:max(14, at)]
		case 4:
			p = append(p, make([]byte, r.IntN(40))...)
		case 5: // a fragment
			if len(p) > 21 {
				binary.BigEndian.PutUint16(p[20:], uint16(r.Uint32())&0x3FFF)
			}
		}
	}
	return p
}

// seen is what the model looks at: the innermost IPv4 header.
type seen struct {
	src, dst     string
	proto        byte
	sport, dport uint16
	later        bool

	// With IPv6:
	routed bool   // it has a routing header
	kind   uint8  // of ICMPv6
	quoted []byte // by ICMPv6
}

func look(p []byte) (s seen, ok bool) {
	if len(p) < 34 || p[12] != 8 || p[13] != 0 || p[14]>>4 != 4 {
		return s, false
	}
	i := p[14:]
	s = seen{src: ip4(i[12:]), dst: ip4(i[16:]), proto: i[9], later: binary.BigEndian.Uint16(i[6:])&0x1FFF != 0}
	if !s.later && len(i) >= 24 {
		s.sport, s.dport = binary.BigEndian.Uint16(i[20:]), binary.BigEndian.Uint16(i[22:])
	}
	return s, true
}

func ip4(b []byte) string { return netip.AddrFrom4([4]byte(b)).String() }

// Packets that are nearly right: no program fails on one, and what comes out is
// what policy lets through: TCP between podA and podR to port 80, both ways, and
// its answers.
func TestFuzzPrograms(t *testing.T) { makes(t, fuzzPrograms) }

func fuzzPrograms(t *testing.T, h *harness) {
	t.Helper()
	set := datapath.RuleSet{ID: 5, Ingress: true, Egress: true, Entries: entries{
		{Direction: datapath.Ingress, Identity: idR, Protocol: tcp, Port: 80}: {}, {Direction: datapath.Egress, Identity: idR, Protocol: tcp, Port: 80}: {},
	}}
	h.rules(podA, set)
	h.rules(podB, datapath.RuleSet{ID: 6, Ingress: true, Egress: true})
	h.idle()
	seeds := map[string][][]byte{
		"from_pod": {
			h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "S")), h.sent(podA, segment(podA.ip, podR.ip, 80, 1000, "SA")),
			h.sent(podA, datagram(podA.ip, podR.ip, 1000, 80, 20)), h.sent(podA, echoRequest(podA.ip, podB.ip)),
			h.sent(podA, segment(podA.ip, podB.ip, 1000, 80, "S")), h.sent(podA, segment(podA.ip, vip, 1000, 80, "S")),
			h.sent(podA, segment(podA.ip, outside, 1000, 80, "S")),
			h.sent(podA, unreachable(t, podA.ip, podR.ip, 4, segment(podR.ip, podA.ip, 1000, 80, "A"))),
		},
		"from_overlay": {
			h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 1000, 80, "S")), h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 80, 1000, "A")),
			h.tunnelled(node2, idR, datagram(podR.ip, podA.ip, 1000, 80, 20)), h.tunnelled(node3, idX, segment(podX.ip, podA.ip, 1000, 80, "S")),
			h.tunnelled(node2, idR, unreachable(t, podR.ip, podA.ip, 4, segment(podA.ip, podR.ip, 1000, 80, "A"))),
			h.plain(segment(outside, podA.ip, 1000, 80, "S")), h.plain(segment(outside, self, 1000, 20000, "S")),
		},
		"from_host": {
			h.plain(segment(self, podA.ip, 1000, 80, "S")), h.plain(segment(outside, podA.ip, 1000, 80, "S")),
			h.plain(segment(self, vip, 1000, 80, "S")), h.plain(datagram(self, podR.ip, 1000, 80, 20)),
		},
	}
	h.fuzz(t, seeds, mutate, wrong)
}

// fuzz hands each program mutated packets, and each verdict to the model.
func (h *harness) fuzz(t *testing.T, seeds map[string][][]byte, mutate func(*rand.Rand, []byte) []byte,
	wrong func(prog string, in []byte, act int, out []byte) string,
) {
	t.Helper()
	progs := map[string]struct {
		p   *ebpf.Program
		dev string
	}{
		"from_pod": {h.d.Programs().FromPod, podA.name}, "from_overlay": {h.d.Programs().FromOverlay, "eth0"},
		"from_host": {h.d.Programs().FromHost, "hawser_net"},
	}
	if h.device != nil {
		progs["from_tunnel"] = struct {
			p   *ebpf.Program
			dev string
		}{h.device.prog, "vxlan0"}
		for _, p := range seeds["from_overlay"] {
			if len(p) > tunnelHeader+34 && p[23] == udp {
				seeds["from_tunnel"] = append(seeds["from_tunnel"], p[tunnelHeader:])
			}
		}
		h.prepare(node2, idR, tunnelMark)
	}
	for name, prog := range progs {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2)) // the same packets in every run
			index := h.ifindex(prog.dev)
			let := 0
			err := h.onCPU(0, func() error {
				for n := range fuzzPackets {
					p := mutate(r, seeds[name][n%len(seeds[name])])
					opts := &ebpf.RunOptions{Data: p, DataOut: make([]byte, len(p)+256), Context: skb{IfIndex: index}}
					act, err := prog.p.Run(opts)
					if errors.Is(err, unix.EINVAL) {
						continue // too short for the kernel's test
					}
					if err != nil {
						return err
					}
					if act == actRedirect || act == actOK && h.device != nil && name == "from_overlay" {
						let++ // or up to the device
					}
					if why := wrong(name, p, int(int32(act)), opts.DataOut); why != "" {
						t.Errorf("packet %d, verdict %d: %s\nin  %x\nout %x", n, int32(act), why, p, opts.DataOut)
						return nil
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d packets, %d of them sent on or answered", fuzzPackets, let)
			if let < fuzzPackets/50 {
				t.Error("hardly any packet passed: the model saw nothing")
			}
		})
	}
}

// wrong is what is wrong with a verdict, by the model.
func wrong(prog string, in []byte, act int, out []byte) string {
	if prog == "from_tunnel" { // nothing there is for the stack
		if act == actOK {
			return "left to the stack"
		}
		prog = "from_overlay"
	}
	i, ok := look(in)
	switch act {
	case actShot:
		return ""
	case actOK:
		if prog == "from_overlay" && (!ok || i.dst != podA.ip && i.dst != podB.ip) {
			return "" // the host's own
		}
		return "left to the stack"
	case actRedirect:
	default:
		return "no such verdict"
	}
	o, ok := look(out)
	if !ok {
		if len(out) > 13 && out[12] == 8 && out[13] == 6 {
			return "" // ARP
		}
		return "sent on something that is not IPv4"
	}
	if prog == "from_host" && i.src == self {
		return "" // the host has no policy
	}
	if prog != "from_overlay" && o.dst == i.src && o.src != i.src {
		return "" // told to the sender
	}
	if prog == "from_pod" && o.proto == udp && o.dport == 8472 {
		if o.dst != node2 {
			return "tunnelled to " + o.dst
		}
		if o, ok = look(append(slices.Clone(out[50:64]), out[64:]...)); !ok {
			return "tunnelled something that is not IPv4"
		}
	}
	if prog == "from_overlay" && o.dst == self {
		return "" // the host has no policy
	}
	if quoted := innerError(prog, out); quoted != nil {
		if q, ok := look(append(slices.Clone(out[:14]), quoted...)); !ok || q.src != o.dst || q.proto != tcp || q.sport != 80 && q.dport != 80 {
			return "an ICMP error about no flow"
		}
		return "" // routers on the way tell of flows too
	}
	if o.src == podA.ip && o.dst == podA.ip {
		return "" // a pod may talk to itself
	}
	// A node may send from all of its range, with the identity that it tells.
	ours := o.src == podA.ip && o.dst == podR.ip
	if !ours && (!strings.HasPrefix(o.src, "10.2.") || o.dst != podA.ip) {
		return "passed from " + o.src + " to " + o.dst
	}
	if o.proto != tcp || !o.later && o.dport != 80 && o.sport != 80 {
		return "passed beside the port"
	}
	return ""
}

// innerError is the packet that an ICMP error quotes, nil when out is none.
func innerError(prog string, out []byte) []byte {
	p := out[14:]
	if prog == "from_pod" && len(p) > 70 && p[9] == udp && binary.BigEndian.Uint16(p[22:]) == 8472 {
		p = p[50:]
	}
	if len(p) < 56 || p[9] != 1 || !slices.Contains([]byte{3, 4, 11, 12}, p[20]) {
		return nil
	}
	return p[28:]
}
