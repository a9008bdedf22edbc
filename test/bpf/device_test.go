// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"

	"github.com/hawser-mesh/hawser/datapath/features"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

const (
	tunnelMark   = 0x2857 // TUNNEL_MARK
	tunnelHeader = 14 + 20 + 8 + 8
)

// makes runs a test with each way of making the tunnel's headers. What the kernel's
// device does between the programs is done here (fromWire); with a real one it is
// datapath/loader's test.
func makes(t *testing.T, test func(t *testing.T, h *harness)) {
	t.Run("ebpf", func(t *testing.T) { test(t, newHarness(t)) })
	t.Run("netdev", func(t *testing.T) { test(t, newDeviceHarness(t)) })
}

func newDeviceHarness(t testing.TB) *harness {
	return newHarnessWith(t, loader.Config{
		ClusterBits: identity.DefaultClusterBits, MapSizes: loader.SmallMaps(), Masquerade: loader.MasqueradePorts(),
		NodeAddr6: netip.MustParseAddr(self6), Masquerade6: netip.MustParseAddr(selfOut6), TunnelDevice: "vxlan0",
	})
}

// device stands in for the receiving half of the tunnel's device: a program that
// gives a packet its tunnel key and mark and then jumps to from_tunnel.
type device struct {
	keys, jump *ebpf.Map
	prog       *ebpf.Program
	ready      bool
}

func (h *harness) newDevice(name string) *device {
	h.t.Helper()
	h.in(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		return netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: 8472})
	})
	d := &device{}
	var err1, err2, err3 error
	d.keys, err1 = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 48, MaxEntries: 1})
	d.jump, err2 = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err := errors.Join(err1, err2); err != nil {
		h.t.Fatal(err)
	}
	d.prog, err3 = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "device", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.StoreImm(asm.R10, -4, 0, asm.Word),
			asm.Mov.Reg(asm.R2, asm.R10),
			asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, d.keys.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.LoadMem(asm.R7, asm.R0, features.TunnelKeySize, asm.Word),
			asm.StoreMem(asm.R6, 8, asm.R7, asm.Word), // the mark
			asm.LoadMem(asm.R7, asm.R0, 28, asm.Word), // without a sender there is no key
			asm.JEq.Imm(asm.R7, 0, "jump"),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Reg(asm.R2, asm.R0),
			asm.Mov.Imm(asm.R3, features.TunnelKeySize),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnSkbSetTunnelKey.Call(),
			asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("jump"),
			asm.LoadMapPtr(asm.R2, d.jump.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, 99).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err3 != nil {
		h.t.Fatal(err3)
	}
	h.t.Cleanup(func() { _, _, _ = d.prog.Close(), d.keys.Close(), d.jump.Close() })
	return d
}

// prepare has the device give the next packet a key, as one from the sender, and a
// mark.
func (h *harness) prepare(sender string, id identity.Number, mark uint32) {
	h.t.Helper()
	var v [48]byte
	binary.NativeEndian.PutUint32(v[0:], uint32(id))
	if sender != "" {
		a := netip.MustParseAddr(sender).As4()
		binary.NativeEndian.PutUint32(v[28:], binary.BigEndian.Uint32(a[:]))
	}
	binary.NativeEndian.PutUint32(v[44:], mark)
	err := h.device.keys.Put(uint32(0), v)
	if err == nil && !h.device.ready {
		err = h.device.jump.Put(uint32(0), h.d.Programs().FromTunnel)
		h.device.ready = true
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// fromDevice hands from_tunnel what the device has taken the headers off.
func (h *harness) fromDevice(sender string, id identity.Number, mark uint32, inner []byte) result {
	h.t.Helper()
	h.prepare(sender, id, mark)
	return h.run(h.device.prog, "vxlan0", inner)
}

// fromWire is a packet's way through from_overlay and, if that lets it up to the
// device, through that.
func (h *harness) fromWire(packet []byte) result {
	h.t.Helper()
	var after skb
	opts := &ebpf.RunOptions{
		Data: packet, DataOut: make([]byte, len(packet)+256), Context: skb{IfIndex: h.ifindex("eth0")}, ContextOut: &after,
	}
	var ret uint32
	h.in(func() (err error) {
		ret, err = h.d.Programs().FromOverlay.Run(opts)
		return err
	})
	if ret != actOK || after.Mark == 0 {
		return result{int(int32(ret)), opts.DataOut}
	}
	if after.Mark != tunnelMark {
		h.t.Fatalf("mark %#x", after.Mark)
	}
	out := opts.DataOut
	sender := netip.AddrFrom4([4]byte(out[26:30])).String()
	return h.fromDevice(sender, identity.Number(binary.BigEndian.Uint32(out[tunnelHeader-4:])>>8), after.Mark, out[tunnelHeader:])
}

// What comes out of the device without having passed the underlay's program is
// dropped, whatever it is.
func TestDeviceStray(t *testing.T) {
	h := newDeviceHarness(t)
	four, six := h.plain(segment(podR.ip, podA.ip, 1000, 80, "S")), h.plain(segment(podR6.ip, podA6.ip, 1000, 80, "S"))
	for _, inner := range [][]byte{four, six} {
		for _, mark := range []uint32{0, 1, tunnelMark + 1, tunnelMark | 1<<16} {
			e := h.dropped(h.fromDevice(node2, idR, mark, inner), maps.DropStrayTunnel)
			if e.SourceID != idR || e.Outer.String() != node2 || e.Program != "from_overlay" {
				t.Errorf("event %+v", e)
			}
		}
		h.dropped(h.fromDevice("", idR, tunnelMark, inner), maps.DropStrayTunnel)
		h.passed(h.fromDevice(node2, idR, tunnelMark, inner))
	}
	arp := h.plain(segment(podR.ip, podA.ip, 1000, 80, "S"))
	arp[13] = 6
	h.dropped(h.fromDevice(node2, idR, tunnelMark, arp), maps.DropUnsupportedProtocol)
}

// The mark says nothing behind from_tunnel: a packet of the tunnel for the host's own
// tunnel port must not be taken for one that the underlay's program let up.
func TestDeviceMarkEnds(t *testing.T) {
	h := newDeviceHarness(t)
	for _, inner := range [][]byte{h.plain(segment(node2, self, 5, 6, "S")), h.plain(segment(node26, self6, 5, 6, "S"))} {
		h.prepare(node2, identity.RemoteNode, tunnelMark)
		var after skb
		opts := &ebpf.RunOptions{Data: inner, DataOut: make([]byte, len(inner)+64), Context: skb{IfIndex: h.ifindex("vxlan0")}, ContextOut: &after}
		h.in(func() error {
			ret, err := h.device.prog.Run(opts)
			if ret != actRedirect || after.Mark != 0 {
				t.Errorf("verdict %d, mark %#x", ret, after.Mark)
			}
			return err
		})
	}
}

// Only whole tunnel packets to the node's own address go up with the mark.
func TestDeviceLetsUp(t *testing.T) {
	h := newDeviceHarness(t)
	mark := func(packet []byte) uint32 {
		t.Helper()
		var after skb
		opts := &ebpf.RunOptions{Data: packet, DataOut: make([]byte, len(packet)+64), Context: skb{IfIndex: h.ifindex("eth0"), Mark: 0}, ContextOut: &after}
		h.in(func() error {
			ret, err := h.d.Programs().FromOverlay.Run(opts)
			if ret != actOK {
				t.Errorf("verdict %d", ret)
			}
			return err
		})
		return after.Mark
	}
	tunnel := func(change func(p []byte)) []byte {
		p := h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 1000, 80, "S"))
		change(p)
		return p
	}
	for name, c := range map[string]struct {
		packet []byte
		want   uint32
	}{
		"IPv4":              {tunnel(func([]byte) {}), tunnelMark},
		"IPv6":              {h.tunnelled(node2, idR, segment(podR6.ip, podA6.ip, 1000, 80, "S")), tunnelMark},
		"health, no probe":  {h.tunnelled(node2, identity.Health, segment(node2, self, 1000, 80, "S")), tunnelMark},
		"a first fragment":  {tunnel(func(p []byte) { p[20] = 0x20 }), 0},
		"a later fragment":  {tunnel(func(p []byte) { p[21] = 5 }), 0},
		"with IP options":   {tunnel(func(p []byte) { p[14] = 0x46 }), 0},
		"to another port":   {tunnel(func(p []byte) { p[37]++ }), 0},
		"to nobody here":    {tunnel(func(p []byte) { p[33] += 7 }), 0},
		"of TCP":            {tunnel(func(p []byte) { p[23] = 6 }), 0},
		"untunnelled":       {h.plain(segment(outside, self, 1000, 80, "S")), 0},
		"untunnelled, IPv6": {h.plain(segment(outside6, self6, 1000, 80, "S")), 0},
	} {
		if got := mark(c.packet); got != c.want {
			t.Errorf("%s: mark %#x, want %#x", name, got, c.want)
		}
	}
	// What is not VXLAN by its flags is nobody's.
	h.dropped(h.fromOverlay(tunnel(func(p []byte) { p[42] = 0 })), maps.DropMalformed)
	h.dropped(h.fromOverlay(tunnel(func(p []byte) { p[tunnelHeader-1] = 1 })), maps.DropMalformed)
}

// What the device is told of a packet. The headers that it makes of that are
// compared with ours in datapath/loader.
func TestDeviceKey(t *testing.T) {
	h := newDeviceHarness(t)
	h.addExternal()
	near, far := [6]byte{2}, [6]byte{2, 0, 0, 0, 5, 7}
	for name, c := range map[string]struct {
		send   func() (in []byte, r result)
		remote string
		id     identity.Number
		mac    [6]byte
	}{
		"pod": {func() ([]byte, result) {
			in := h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "A"))
			return in, h.fromPod(podA, in)
		}, node2, idA, near},
		"pod, IPv6": {func() ([]byte, result) {
			in := h.sent(podA, segment(podA6.ip, podX6.ip, 1000, 80, "A"))
			return in, h.fromPod(podA, in)
		}, node3, idA, near},
		"host": {func() ([]byte, result) {
			in := h.plain(segment(self, podR.ip, 1000, 80, "A"))
			return in, h.fromHost(in)
		}, node2, identity.RemoteNode, near},
		"external": {func() ([]byte, result) {
			in := h.sent(podA, segment(podA.ip, lanHost, 1000, 80, "A"))
			return in, h.fromPod(podA, in)
		}, lan, lanVNI, far},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			h.clearKeys()
			in, r := c.send()
			h.passed(r)
			k := h.key()
			if k.remote != netip.MustParseAddr(c.remote) || k.local != netip.MustParseAddr(self) || k.id != c.id || k.ttl != 64 || k.tos != tosOf(in) {
				t.Errorf("key %+v", k)
			}
			if [6]byte(r.out[:6]) != c.mac || [6]byte(r.out[6:12]) != [6]byte{2, 0, 0, 0, 0, 1} || string(r.out[12:]) != string(in[12:]) {
				t.Errorf("inner %x", r.out)
			}
		})
	}
	h.t = t
}

// tosOf is the traffic class of a packet.
func tosOf(p []byte) uint8 {
	if p[14]>>4 == 4 {
		return p[15]
	}
	return p[14]<<4 | p[15]>>4
}

type tunnelKey struct {
	id            identity.Number
	remote, local netip.Addr
	tos, ttl      uint8
}

// inHand is where struct tunnel_key begins in the map scratch.
func (h *harness) inHand() int { return int(h.d.Maps().Scratch.ValueSize()) - features.TunnelKeySize }

func (h *harness) clearKeys() {
	h.t.Helper()
	zero := make([][]byte, ebpf.MustPossibleCPU())
	for i := range zero {
		zero[i] = make([]byte, h.d.Maps().Scratch.ValueSize())
	}
	if err := h.d.Maps().Scratch.Put(uint32(0), zero); err != nil {
		h.t.Fatal(err)
	}
}

// key is what the last packet's device was told.
func (h *harness) key() (k tunnelKey) {
	h.t.Helper()
	var all [][]byte
	if err := h.d.Maps().Scratch.Lookup(uint32(0), &all); err != nil {
		h.t.Fatal(err)
	}
	at := func(b []byte) netip.Addr {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], binary.NativeEndian.Uint32(b))
		return netip.AddrFrom4(a)
	}
	for _, v := range all {
		if b := v[h.inHand():]; b[21] != 0 {
			k = tunnelKey{identity.Number(binary.NativeEndian.Uint32(b)), at(b[4:]), at(b[28:]), b[20], b[21]}
		}
	}
	return k
}
