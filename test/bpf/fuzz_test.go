// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/identity"
)

// fuzzTimesVar is the environment variable that says how many times as many packets
// each program gets, and how many times as many seeds the sockets.
const fuzzTimesVar = "HAWSER_FUZZ_TIMES"

const maxFuzzTimes = 50

// fuzzTimes is its value, 1 without.
func fuzzTimes(t *testing.T) int {
	t.Helper()
	text := os.Getenv(fuzzTimesVar)
	if text == "" {
		return 1
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxFuzzTimes {
		t.Fatalf("%s is %q: want 1 to %d", fuzzTimesVar, text, maxFuzzTimes)
	}
	return n
}

// fuzzPackets is how many packets each program gets.
func fuzzPackets(t *testing.T) int {
	t.Helper()
	return 60000 * fuzzTimes(t)
}

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

// isTunnelled reports whether a packet is one for the tunnel's port.
func isTunnelled(p []byte) bool {
	return len(p) >= tunnelHeader && p[23] == udp && binary.BigEndian.Uint16(p[36:]) == 8472
}

func ip4(b []byte) string { return netip.AddrFrom4([4]byte(b)).String() }

// Services of the fuzzed world: one with a backend that policy lets podA ask, at the
// port that it may ask, and one with a backend that it may not.
const (
	servedPort = 81
	deniedPort = 82
)

// fuzzWorld lets podA talk TCP with port 80 of podR and of the outside, and podR ask
// port 80 of podA; and opens a flow of podA, from port 1001, to the service.
func (h *harness) fuzzWorld(f family) {
	h.t.Helper()
	h.rules(f.a, datapath.RuleSet{ID: 5, Ingress: true, Egress: true, Entries: entries{
		{Direction: datapath.Ingress, Identity: idR, Protocol: tcp, Port: 80}:           {},
		{Direction: datapath.Egress, Identity: idR, Protocol: tcp, Port: 80}:            {},
		{Direction: datapath.Egress, Identity: identity.World, Protocol: tcp, Port: 80}: {},
	}})
	h.rules(f.b, datapath.RuleSet{ID: 6, Ingress: true, Egress: true})
	for _, proto := range []uint8{tcp, udp, sctp} {
		h.serve(f.vip, 80, proto)
		for port, b := range map[uint16]host{servedPort: f.r, deniedPort: f.b} {
			h.tables.Frontends.Set(datapath.FrontendKey{Addr: addr(f.vip), Port: port, Protocol: proto},
				datapath.Frontend{Service: 1, Backends: []datapath.Backend{{Addr: addr(b.ip), Port: 80}}})
		}
	}
	h.sync()
	h.passed(h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.vip, 1001, servedPort, "S"))))
	expect(h.t.(*testing.T), h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(f.r.ip, f.a.ip, 80, 1001, "SA")))).out, f.vip, servedPort, f.a.ip, 1001)
	h.shake(f)
}

// shake opens the flow to the service, and one to the outside from port 1002, again:
// mutated packets reset them.
func (h *harness) shake(f family) {
	for _, flags := range []string{"S", "A"} {
		h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.vip, 1001, servedPort, flags)))
		h.fromOverlay(h.tunnelled(node2, idR, segment(f.r.ip, f.a.ip, 80, 1001, "SA")))
		h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.outside, 1002, 80, flags)))
		h.fromOverlay(h.plain(segment(f.outside, f.a.ip, 80, 1002, "SA")))
	}
}

// Packets that are nearly right: no program fails on one, and what comes out is
// what policy lets through: TCP between podA and podR to port 80, both ways, its
// answers, and TCP of podA to port 80 outside; with the service's or the node's
// address where it is translated, and nowhere else.
func TestFuzzPrograms(t *testing.T) { makes(t, fuzzPrograms) }

func fuzzPrograms(t *testing.T, h *harness) {
	t.Helper()
	h.outbound()
	h.fuzzWorld(families()[0])
	port := h.masked(h.fromPod(podA, h.sent(podA, segment(podA.ip, outside, 1002, 80, "S"))), outside, 80)
	seeds := map[string][][]byte{
		"from_pod": {
			h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "S")), h.sent(podA, segment(podA.ip, podR.ip, 80, 1000, "SA")),
			h.sent(podA, datagram(podA.ip, podR.ip, 1000, 80, 20)), h.sent(podA, echoRequest(podA.ip, podB.ip)),
			h.sent(podA, segment(podA.ip, podB.ip, 1000, 80, "S")), h.sent(podA, segment(podA.ip, vip, 1000, 80, "S")),
			h.sent(podA, segment(podA.ip, outside, 1000, 80, "S")), h.sent(podA, segment(podA.ip, outside, 1002, 80, "A")),
			h.sent(podA, chunk(podA.ip, podR.ip, 1000, 80, 20)), h.sent(podA, chunk(podA.ip, vip, 1000, servedPort, 20)),
			h.sent(podA, segment(podA.ip, vip, 1000, servedPort, "S")), h.sent(podA, segment(podA.ip, vip, 1001, servedPort, "A")),
			h.sent(podA, datagram(podA.ip, vip, 1000, servedPort, 20)), h.sent(podA, segment(podA.ip, vip, 1000, deniedPort, "S")),
			h.sent(podA, unreachable(t, podA.ip, podR.ip, 4, segment(podR.ip, podA.ip, 1000, 80, "A"))),
			h.sent(podA, unreachable(t, podA.ip, vip, 4, segment(vip, podA.ip, servedPort, 1001, "A"))),
			h.sent(podA, unreachable(t, podA.ip, outside, 4, segment(outside, podA.ip, 80, 1002, "A"))),
		},
		"from_overlay": {
			h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 1000, 80, "S")), h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 80, 1000, "A")),
			h.tunnelled(node2, idR, datagram(podR.ip, podA.ip, 1000, 80, 20)), h.tunnelled(node3, idX, segment(podX.ip, podA.ip, 1000, 80, "S")),
			h.tunnelled(node2, idR, chunk(podR.ip, podA.ip, 1000, 80, 20)), h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 80, 1001, "A")),
			h.tunnelled(node2, idR, unreachable(t, podR.ip, podA.ip, 4, segment(podA.ip, podR.ip, 1000, 80, "A"))),
			h.tunnelled(node2, idR, unreachable(t, podR.ip, podA.ip, 4, segment(podA.ip, podR.ip, 1001, 80, "A"))),
			h.plain(segment(outside, podA.ip, 1000, 80, "S")), h.plain(segment(outside, self, 1000, 20000, "S")),
			h.plain(segment(outside, self, 80, port, "A")), h.plain(segment(outside, self, 80, port, "FA")),
			h.plain(datagram(outside, self, 80, port, 20)),
			h.plain(unreachable(t, "198.18.0.1", self, 4, segment(self, outside, port, 80, "A"))),
		},
		"from_host": {
			h.plain(segment(self, podA.ip, 1000, 80, "S")), h.plain(segment(outside, podA.ip, 1000, 80, "S")),
			h.plain(segment(self, vip, 1000, 80, "S")), h.plain(datagram(self, podR.ip, 1000, 80, 20)),
			h.plain(segment(self, vip, 1000, servedPort, "S")), h.plain(segment(outside, vip, 1000, servedPort, "S")),
			h.plain(segment(outside, podA.ip, 80, 1002, "A")), h.plain(chunk(outside, podA.ip, 80, 1002, 20)),
		},
	}
	h.fuzz(t, families()[0], seeds, mutate, wrong)
}

// fuzz hands each program mutated packets, and each verdict to the model.
func (h *harness) fuzz(t *testing.T, f family, seeds map[string][][]byte, mutate func(*rand.Rand, []byte) []byte,
	wrong func(prog string, in []byte, act int, out []byte) string,
) {
	t.Helper()
	packets := fuzzPackets(t)
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
	// The host, whom no policy binds, last: pods may answer what it has sent.
	for _, name := range []string{"from_pod", "from_overlay", "from_tunnel", "from_host"} {
		prog, ok := progs[name]
		if !ok {
			continue
		}
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2)) // the same packets in every run
			index := h.ifindex(prog.dev)
			let := 0
			err := h.onCPU(0, func() error {
				for n := range packets {
					if n%500 == 0 {
						h.shake(f)
					}
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
					if h.device != nil && name == "from_overlay" && act == actOK && isTunnelled(p) {
						continue // from_tunnel judges it
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
			t.Logf("%d packets, %d of them sent on or answered", packets, let)
			if let < packets/50 {
				t.Error("hardly any packet passed: the model saw nothing")
			}
		})
	}
}

// ofMesh reports whether an IPv4 address is of the mesh or of a node: the others are
// outside.
func ofMesh(a string) bool {
	for _, prefix := range []string{"10.1.", "10.2."} {
		if strings.HasPrefix(a, prefix) {
			return true
		}
	}
	return slices.Contains([]string{podX.ip, self, node2, node3}, a)
}

// asked reports whether a packet is, or answers, one to a port that may be asked.
func asked(s seen, ports ...uint16) bool {
	return s.proto == tcp && (s.later || slices.Contains(ports, s.dport) || slices.Contains(ports, s.sport))
}

// wrongToStack is what is wrong with leaving a packet to the stack.
func wrongToStack(prog string, in, out []byte, i seen, ok bool) string {
	switch {
	case !bytes.Equal(in, out):
		return "changed, and left to the stack"
	case prog == "from_overlay" && (!ok || i.dst != podA.ip && i.dst != podB.ip):
		return "" // the host's own
	case prog == "from_pod" && ok && i.src == podA.ip && !ofMesh(i.dst) && (asked(i, 80) || i.proto == 1):
		return "" // goes past the underlay, or its time is over
	}
	return "left to the stack"
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
		return wrongToStack(prog, in, out, i, ok)
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
	} else if prog == "from_pod" && o.src == self {
		return wrongMasked(i, o, out)
	}
	if prog == "from_overlay" && o.dst == self {
		return "" // the host has no policy
	}
	if quoted := innerError(prog, out); quoted != nil {
		if q, ok := look(append(slices.Clone(out[:14]), quoted...)); !ok || q.src != o.dst || !asked(q, 80, servedPort) {
			return "an ICMP error about no flow"
		}
		return "" // routers on the way tell of flows too
	}
	return wrongPair(prog, i, o)
}

// wrongMasked is what is wrong with a packet that leaves with the node's address.
func wrongMasked(i, o seen, out []byte) string {
	ports := loader.MasqueradePorts()
	if i.src != podA.ip || ofMesh(o.dst) || o.dst != i.dst && i.dst != vip {
		return "masqueraded from " + i.src + " to " + o.dst
	}
	if quoted := innerError("", out); quoted != nil {
		if q, ok := look(append(slices.Clone(out[:14]), quoted...)); !ok || q.src != o.dst || q.dst != self || !asked(q, 80) {
			return "a masqueraded ICMP error about no flow"
		}
		return ""
	}
	if o.proto != tcp || !o.later && (o.dport != 80 || o.sport < ports.First || o.sport >= ports.First+ports.Count) {
		return "masqueraded beside the port"
	}
	return ""
}

// wrongPair is what is wrong with a packet by whom it is between.
func wrongPair(prog string, i, o seen) string {
	if o.src == podA.ip && o.dst == podA.ip {
		return "" // a pod may talk to itself
	}
	switch {
	case o.src == podA.ip && o.dst == podR.ip:
	case prog == "from_overlay" && o.dst == podA.ip && o.src == vip:
		if !o.later && o.sport != servedPort {
			return "answered by a service that was not asked"
		}
		return ifNot(asked(o, servedPort))
	case o.dst == podA.ip && !ofMesh(o.src):
		if !o.later && o.sport != 80 {
			return "let in from outside"
		}
	// A node may send from all of its range, with the identity that it tells.
	case !strings.HasPrefix(o.src, "10.2.") || o.dst != podA.ip || prog == "from_pod":
		return "passed from " + o.src + " to " + o.dst
	}
	return ifNot(asked(o, 80))
}

func ifNot(ok bool) string {
	if ok {
		return ""
	}
	return "passed beside the port"
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

// TestFuzzStack gives from_stack anything: it passes all, and changes one bit of the
// source's MAC of what came in somewhere, so that it is known as forwarded.
func TestFuzzStack(t *testing.T) {
	h, packets := newHarness(t), fuzzPackets(t)
	f4, f6 := families()[0], families()[1]
	seeds := [][]byte{
		h.plain(segment(f4.self, f4.a.ip, 1000, 80, "S")), h.plain(datagram(f4.outside, f4.a.ip, 1000, 80, 20)),
		h.plain(segment(f6.self, f6.a.ip, 1000, 80, "S")), h.plain(solicit(f6.self, "ff02::1:ff00:5", f6.a.ip, nil)),
	}
	r := rand.New(rand.NewPCG(3, 4))
	index, marked := h.ifindex("hawser_host"), 0
	err := h.onCPU(0, func() error {
		for n := range packets {
			p := mutate(r, seeds[n%len(seeds)])
			cameIn := []uint32{0, 1, 2, index, 77, r.Uint32() & 0xFFFF}[r.IntN(6)]
			opts := &ebpf.RunOptions{Data: p, DataOut: make([]byte, len(p)+256), Context: skb{IfIndex: index, CameIn: cameIn}}
			act, err := h.d.Programs().FromStack.Run(opts)
			if errors.Is(err, unix.EINVAL) {
				continue // too short for the kernel's test
			}
			if err != nil {
				return err
			}
			want := slices.Clone(p)
			if cameIn > 1 {
				want[6] |= 1
				marked++
			}
			if act != actOK || !bytes.Equal(opts.DataOut, want) {
				t.Errorf("packet %d that came in on %d, verdict %d\nin   %x\nout  %x\nwant %x", n, cameIn, int32(act), p, opts.DataOut, want)
				return nil
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d packets, %d of them forwarded", packets, marked)
	if marked < packets/4 {
		t.Error("hardly any packet was forwarded")
	}
}
