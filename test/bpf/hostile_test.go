// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	dpmaps "github.com/hawser-mesh/hawser/datapath/maps"
)

// What a hostile packet may come to beside a drop with a reason.
const (
	passes  = dpmaps.Forwarded        // to the pod, not a bit changed, if policy lets it
	toStack = datapath.DropReason(99) // the host's own matter, not a bit changed
)

// entrance is where hostile packets come in. Each goes to podB, and is judged
// there.
type entrance struct {
	name  string
	src   func(f family) string
	at    int // where the IP header is in the frame
	frame func(h *harness, f family, ls []gopacket.SerializableLayer) []byte
	enter func(h *harness) (*ebpf.Program, string)
}

func entrances() []entrance {
	return []entrance{
		{
			"pod", func(f family) string { return f.a.ip }, 14,
			func(h *harness, f family, ls []gopacket.SerializableLayer) []byte { return h.sent(f.a, ls) },
			func(h *harness) (*ebpf.Program, string) { return h.d.Programs().FromPod, podA.name },
		},
		{
			"tunnel", func(f family) string { return f.r.ip }, 64,
			func(h *harness, _ family, ls []gopacket.SerializableLayer) []byte { return h.tunnelled(node2, idR, ls) },
			func(h *harness) (*ebpf.Program, string) { return h.d.Programs().FromOverlay, "eth0" },
		},
		{
			"wire", func(f family) string { return f.outside }, 14,
			func(h *harness, _ family, ls []gopacket.SerializableLayer) []byte { return h.plain(ls) },
			func(h *harness) (*ebpf.Program, string) { return h.d.Programs().FromOverlay, "eth0" },
		},
		{
			"host", func(f family) string { return f.outside }, 14, // forwarded: the host's own are not judged
			func(h *harness, _ family, ls []gopacket.SerializableLayer) []byte { return h.plain(ls) },
			func(h *harness) (*ebpf.Program, string) { return h.d.Programs().FromHost, "hawser_net" },
		},
	}
}

// hostile is a packet that nobody sends in earnest.
type hostile struct {
	name   string
	only   uint8                                                          // 4 or 6: of one family
	make   func(src, dst string, n uint16) [][]gopacket.SerializableLayer // the last is judged; nil: a SYN
	mangle func(frame []byte, at int) []byte                              // nil: as it is
	want   outcomes
}

// outcomes are by entrance; "" is for those that are not named.
type outcomes map[string]datapath.DropReason

func always(r datapath.DropReason) outcomes { return outcomes{"": r} }

// packets are the frames of a hostile packet that is the n-th.
func (h *harness) packets(c hostile, f family, e entrance, n uint16) (out [][]byte) {
	h.t.Helper()
	all := [][]gopacket.SerializableLayer{segment(e.src(f), f.b.ip, n, 80, "S")}
	if c.make != nil {
		all = c.make(e.src(f), f.b.ip, n)
	}
	for _, ls := range all {
		out = append(out, e.frame(h, f, ls))
	}
	if last := len(out) - 1; c.mangle != nil {
		out[last] = c.mangle(out[last], e.at)
	}
	return out
}

// TestHostilePackets sends each hostile packet by each way in, once while policy
// lets such a packet in and once while it does not: what passes is what policy
// allows, unchanged; what is dropped has its reason; and no packet but one that
// passes leaves a flow behind.
func TestHostilePackets(t *testing.T) {
	h := newHarness(t)
	cases, n := 0, uint16(2000)
	for _, open := range []bool{true, false} {
		h.closedButFor(open)
		for _, f := range families() {
			for _, c := range hostiles(t, f) {
				if c.only != 0 && (c.only == 6) != isIPv6(f.a.ip) {
					continue
				}
				for _, e := range entrances() {
					want, ok := c.want[e.name]
					if !ok {
						want, ok = c.want[""]
					}
					if !ok {
						continue // it cannot come this way
					}
					cases, n = cases+1, n+1
					t.Run(f.prefix+c.name+", "+e.name+map[bool]string{true: "", false: ", denied"}[open], func(t *testing.T) {
						h.t = t
						h.forgetFlows()
						h.hostile(h.packets(c, f, e, n), e, want, open)
					})
				}
			}
		}
	}
	h.t = t
	t.Logf("%d cases of hostile packets", cases)
	if cases < 400 {
		t.Errorf("only %d cases", cases)
	}
}

// closedButFor closes both pods, but for port 80 and echos if told.
func (h *harness) closedButFor(open bool) {
	h.t.Helper()
	set := datapath.RuleSet{ID: 5, Ingress: true, Egress: true, Entries: entries{}}
	for _, d := range []datapath.Direction{datapath.Ingress, datapath.Egress} {
		for _, f := range families() {
			port := uint16(80)
			if !open {
				port = 81
				f.echo++
			}
			for _, proto := range []uint8{tcp, udp, sctp} {
				set.Entries[datapath.PolicyKey{Direction: d, Protocol: proto, Port: port}] = datapath.PolicyEntry{}
			}
			set.Entries[datapath.PolicyKey{Direction: d, Protocol: f.icmp, Port: f.echo}] = datapath.PolicyEntry{}
		}
	}
	h.rules(podA, set)
	set.ID, set.Entries = 6, maps.Clone(set.Entries)
	h.rules(podB, set)
}

// hostile sends packets and expects an outcome of the last.
func (h *harness) hostile(frames [][]byte, e entrance, want datapath.DropReason, open bool) {
	h.t.Helper()
	var r result
	before := 0
	for i, frame := range frames {
		if i == len(frames)-1 {
			before, _ = h.flowCount()
			h.settle()
		}
		prog, dev := e.enter(h)
		r = h.run(prog, dev, frame)
	}
	last := frames[len(frames)-1]
	after, _ := h.flowCount()
	switch {
	case want == toStack:
		if r.act != actOK || !bytes.Equal(r.out, last) {
			h.t.Errorf("verdict %d, want the stack and the packet as it was", r.act)
		}
	case want != passes && open:
		h.dropped(r, want)
	case want != passes:
		if r.act != actShot {
			h.t.Errorf("verdict %d, want a drop", r.act)
		}
	case !open:
		h.dropped(r, dpmaps.DropPolicyDenied)
	default:
		h.passed(r)
		if !bytes.Equal(r.out[14:], last[e.at:]) {
			h.t.Errorf("became\n%x, was\n%x", r.out[14:], last[e.at:])
		}
		before = max(before, 1) // its own
		h.remembered(last[e.at:])
	}
	if after != before {
		h.t.Errorf("%d flows, want %d", after, before)
	}
	h.events()
}

// remembered expects that all flows are between the two ends of a packet.
func (h *harness) remembered(p []byte) {
	h.t.Helper()
	ends := map[string]bool{}
	if p[0]>>4 == 6 {
		ends[string(p[8:24])], ends[string(p[24:40])] = true, true
	} else {
		ends[string(p[12:16])], ends[string(p[16:20])] = true, true
	}
	for k := range h.entriesNow() {
		var a, b string
		switch k := k.(type) {
		case dpmaps.Tuple4:
			a, b = string(k.Source[:]), string(k.Destination[:])
		case dpmaps.Tuple6:
			a, b = string(k.Source[:]), string(k.Destination[:])
		}
		if !ends[a] || !ends[b] || a == b {
			h.t.Errorf("remembered as %+v", k)
		}
	}
}

// settle forgets what was counted and told up to now.
func (h *harness) settle() {
	h.t.Helper()
	h.events()
	rows, err := dpmaps.ReadMetrics(h.d.Maps().Metrics)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, r := range rows {
		h.seen[metric{r.Reason, r.Direction, r.Program}] = r.Packets
	}
}

// TestShortPackets cuts packets at every length: until all is there that judges a
// packet, it is dropped as malformed, or left to the host's stack when it cannot be
// known whose it is; never does one pass, leave a flow, or crash.
func TestShortPackets(t *testing.T) {
	h := newHarness(t)
	h.closedButFor(true)
	cut := 0
	for _, f := range families() {
		ip, n := 20, uint16(3000)
		if isIPv6(f.a.ip) {
			ip = 40
		}
		for _, e := range entrances() {
			for name, l4 := range map[string]struct {
				ls   []gopacket.SerializableLayer
				need int
			}{
				"tcp":  {segment(e.src(f), f.b.ip, n, 80, "S"), 20},
				"udp":  {datagram(e.src(f), f.b.ip, n, 80, 8), 8},
				"sctp": {chunk(e.src(f), f.b.ip, n, 80, 8), 8},
				"echo": {echoOf(e.src(f), f.b.ip, n), 8},
			} {
				t.Run(f.prefix+e.name+" "+name, func(t *testing.T) {
					h.t = t
					frame := e.frame(h, f, l4.ls)
					for size := 14; size < e.at+ip+l4.need; size++ {
						h.cut(e, slices.Clone(frame[:size]))
						cut++
					}
					if n, _ := h.flowCount(); n != 0 {
						t.Errorf("%d flows are left behind", n)
					}
					prog, dev := e.enter(h)
					h.passed(h.run(prog, dev, frame[:e.at+ip+l4.need]))
					h.forgetFlows()
					h.events()
				})
				n++
			}
		}
	}
	h.t = t
	t.Logf("%d cut packets", cut)
}

// cut expects that a packet that was cut short goes nowhere.
func (h *harness) cut(e entrance, frame []byte) {
	h.t.Helper()
	prog, dev := e.enter(h)
	moved := metric{dpmaps.DropMalformed, datapath.Ingress, prog.String()}
	for _, m := range []string{"from_pod", "from_overlay", "from_host"} {
		if info, err := prog.Info(); err == nil && info.Name == m {
			moved.program = m
		}
	}
	if moved.program == "from_pod" {
		moved.direction = datapath.Egress
	}
	h.moved(moved)
	ret, err := h.try(prog, dev, frame)
	switch {
	case errors.Is(err, unix.EINVAL): // too short for the kernel's test
	case err != nil:
		h.t.Fatal(err)
	case e.at+20 > len(frame) && e.enterOverlay() && ret == actOK: // nobody's yet
	case ret != actShot:
		h.t.Errorf("verdict %d for %d bytes", ret, len(frame))
	case h.moved(moved) != 1:
		h.t.Errorf("%d bytes are dropped, but not as malformed", len(frame))
	}
}

// enterOverlay says whether packets that are not for pods belong to the host.
func (e entrance) enterOverlay() bool { return e.name == "tunnel" || e.name == "wire" }

// try is run for packets that the kernel's test may refuse.
func (h *harness) try(prog *ebpf.Program, dev string, frame []byte) (act int, err error) {
	h.t.Helper()
	index := h.ifindex(dev)
	h.in(func() error {
		var ret uint32
		ret, err = prog.Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: skb{IfIndex: index}})
		act = int(int32(ret))
		return nil
	})
	return act, err
}

// put writes bytes into a frame, counted from the IP header.
func put(off int, b ...byte) func([]byte, int) []byte {
	return func(p []byte, at int) []byte {
		copy(p[at+off:], b)
		return p
	}
}

// mend computes an IPv4 header's checksum anew.
func mend(change func([]byte, int) []byte) func([]byte, int) []byte {
	return func(p []byte, at int) []byte {
		p = change(p, at)
		var sum uint32
		p[at+10], p[at+11] = 0, 0
		for i := at; i < at+20; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(p[i:]))
		}
		sum = sum&0xFFFF + sum>>16
		binary.BigEndian.PutUint16(p[at+10:], ^uint16(sum+sum>>16))
		return p
	}
}
