// SPDX-License-Identifier: Apache-2.0

// Package features says what the running kernel can do, by trying it. Versions
// are never compared: distributions backport.
package features

import (
	"errors"
	"fmt"
	"math"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TCX reports whether programs can be attached by links (Linux 6.6); without
// it they are clsact filters. Needs CAP_BPF and CAP_NET_ADMIN.
func TCX() (bool, error) {
	prog, err := load(asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()})
	if err != nil {
		return false, fmt.Errorf("probe tcx: %w", err)
	}
	defer prog.Close()
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: math.MaxInt32, Program: prog, Attach: ebpf.AttachTCXIngress,
	})
	switch {
	case err == nil:
		_ = l.Close()
		return true, nil
	case errors.Is(err, unix.ENODEV): // the kernel went as far as to look for it
		return true, nil
	}
	return false, nil
}

// Sockets reports whether programs can be put on a cgroup's sockets: on connect,
// and on getpeername and closing, the newest of those that are used (Linux 5.9).
func Sockets() bool {
	for at, kind := range map[ebpf.AttachType]ebpf.ProgramType{
		ebpf.AttachCGroupInet4Connect:     ebpf.CGroupSockAddr,
		ebpf.AttachCgroupInet4GetPeername: ebpf.CGroupSockAddr,
		ebpf.AttachCgroupInetSockRelease:  ebpf.CGroupSock,
	} {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "probe", Type: kind, AttachType: at, License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
		})
		if err != nil {
			return false
		}
		_ = prog.Close()
	}
	return true
}

// VXLAN reports whether the kernel has VXLAN devices, or a module for them, which
// it loads then. Needs CAP_NET_ADMIN.
func VXLAN() (bool, error) { return hasDevices("vxlan") }

// hasDevices asks for a device of a kind, without the attributes that it must have:
// the kernel refuses it as soon as it knows the kind.
func hasDevices(kind string) (bool, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "hawser_probe"
	link := &netlink.GenericLink{LinkAttrs: attrs, LinkType: kind}
	err := netlink.LinkAdd(link)
	switch {
	case errors.Is(err, unix.EINVAL):
		return true, nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	case err == nil: // none does that; nothing is to be left if one did
		return true, netlink.LinkDel(link)
	}
	return false, fmt.Errorf("probe %s devices: %w", kind, err)
}

// Flags of bpf_skb_adjust_room that the probe uses.
const (
	adjustRoomMAC  = 1
	fixedGSO       = 1 << 0
	encapL3IPv4    = 1 << 1
	encapL4UDP     = 1 << 4
	EncapL2Eth     = 1 << 6
	encapL2Shift   = 56
	ethernetLength = 14
	overhead       = 50
	DecapL3IPv6    = 1 << 8
	probeLength    = 128
)

// Flags of bpf_l4_csum_replace that the probe uses.
const (
	pseudoHeader   = 1 << 4
	ChecksumOfIPv6 = 1 << 7
	checksumAt     = 40
)

// EncapEthernet reports whether bpf_skb_adjust_room can be told that the inner
// packet starts with an Ethernet header (Linux 5.13).
func EncapEthernet() (bool, error) {
	flags := int64(fixedGSO | encapL3IPv4 | encapL4UDP | EncapL2Eth | ethernetLength<<encapL2Shift)
	return probe("adjust_room", asm.Instructions{
		asm.Mov.Imm(asm.R2, overhead),
		asm.Mov.Imm(asm.R3, adjustRoomMAC),
		asm.LoadImm(asm.R4, flags, asm.DWord),
		asm.FnSkbAdjustRoom.Call(),
		asm.Return(),
	})
}

// DecapIPv6 reports whether bpf_skb_adjust_room can be told that what is left is
// IPv6 (Linux 6.3).
func DecapIPv6() (bool, error) {
	return probe("adjust_room of IPv6", asm.Instructions{
		asm.Mov.Imm(asm.R2, -overhead),
		asm.Mov.Imm(asm.R3, adjustRoomMAC),
		asm.LoadImm(asm.R4, fixedGSO|DecapL3IPv6, asm.DWord),
		asm.FnSkbAdjustRoom.Call(),
		asm.Return(),
	})
}

// ChecksumIPv6 reports whether bpf_l4_csum_replace can be told that the packet is
// IPv6 (Linux 6.16), without which it spoils the sum that a device has taken of
// the whole packet.
func ChecksumIPv6() (bool, error) {
	return probe("l4_csum_replace of IPv6", asm.Instructions{
		asm.Mov.Imm(asm.R2, checksumAt),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 0),
		asm.Mov.Imm(asm.R5, ChecksumOfIPv6|pseudoHeader),
		asm.FnL4CsumReplace.Call(),
		asm.Return(),
	})
}

// Sizes of struct bpf_tunnel_key: all of it, and without the address to send from,
// which older kernels do not have.
const (
	TunnelKeySize      = 44
	tunnelKeyShortSize = 28
	stackSlots         = 48
)

// TunnelKey is how much of struct bpf_tunnel_key bpf_skb_set_tunnel_key takes: all
// TunnelKeySize bytes since Linux 5.19.
func TunnelKey() (size uint32, err error) {
	ins := asm.Instructions{asm.Mov.Imm(asm.R0, 0)}
	for at := int16(8); at <= stackSlots; at += 8 {
		ins = append(ins, asm.StoreMem(asm.R10, -at, asm.R0, asm.DWord))
	}
	whole, err := probe("set_tunnel_key", append(ins,
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, -stackSlots),
		asm.Mov.Imm(asm.R3, TunnelKeySize),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnSkbSetTunnelKey.Call(),
		asm.Return(),
	))
	if err != nil || !whole {
		return tunnelKeyShortSize, err
	}
	return TunnelKeySize, nil
}

// probe reports whether a program returns 0 on an IPv4 packet.
func probe(what string, ins asm.Instructions) (bool, error) {
	prog, err := load(ins)
	if err != nil {
		return false, fmt.Errorf("probe %s: %w", what, err)
	}
	defer prog.Close()
	packet := make([]byte, probeLength)
	packet[12], packet[14] = 0x08, 0x45 // IPv4
	ret, _, err := prog.Test(packet)
	if err != nil {
		return false, fmt.Errorf("probe %s: %w", what, err)
	}
	return ret == 0, nil
}

func load(ins asm.Instructions) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "probe", Type: ebpf.SchedCLS, License: "GPL", Instructions: ins,
	})
}
