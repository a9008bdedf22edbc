// SPDX-License-Identifier: Apache-2.0

package netdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// setSysctl writes a value below /proc/sys of the calling thread's namespace,
// if it differs.
func setSysctl(name, value string) error {
	path := filepath.Join("/proc/sys", name)
	if have, err := os.ReadFile(path); err == nil && string(have) == value+"\n" {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl %s=%s: %w", name, value, err)
	}
	return nil
}

// quietIPv6 keeps a device without IPv6 addresses of its own. A kernel without
// IPv6 has nothing to keep quiet.
func quietIPv6(device string) error {
	return ignoreMissing(setSysctl("net/ipv6/conf/"+device+"/disable_ipv6", "1"))
}

// podIPv6 turns IPv6 off in a pod without IPv6 addresses, and autoconfiguration
// in one that has some: the mesh is the only one to give addresses.
func podIPv6(device string, wanted bool) error {
	base := "net/ipv6/conf/" + device + "/"
	if !wanted {
		return quietIPv6(device)
	}
	settings := [][2]string{
		{base + "accept_ra", "0"}, {base + "autoconf", "0"}, {base + "accept_dad", "0"}, {base + "dad_transmits", "0"},
		{base + "disable_ipv6", "0"},
		// What a pod sends to its own address passes there.
		{"net/ipv6/conf/lo/disable_ipv6", "0"},
	}
	return setAll("pod with IPv6 address", settings)
}

// hostIPv6 turns IPv6 off on a device of the host, or leaves it without any
// address that the mesh does not give it.
func hostIPv6(device string, wanted bool) error {
	base := "net/ipv6/conf/" + device + "/"
	if !wanted {
		return quietIPv6(device)
	}
	const noLinkLocal = "1" // of addr_gen_mode, see linux/if_link.h
	return setAll("host with IPv6 address", [][2]string{
		{base + "accept_ra", "0"}, {base + "autoconf", "0"}, {base + "accept_dad", "0"}, {base + "dad_transmits", "0"},
		{base + "addr_gen_mode", noLinkLocal}, {base + "disable_ipv6", "0"},
	})
}

// forwardIPv6 lets the host's stack forward what comes in from a device. Kernels
// before 6.17 ask net.ipv6.conf.all.forwarding beside, which is the operator's.
func forwardIPv6(device string) error {
	base := "net/ipv6/conf/" + device + "/"
	if err := setSysctl(base+"forwarding", "1"); err != nil {
		return err
	}
	return ignoreMissing(setSysctl(base+"force_forwarding", "1"))
}

func setAll(what string, settings [][2]string) error {
	for _, s := range settings {
		if err := setSysctl(s[0], s[1]); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// trains are the device features by which a train of UDP datagrams (QUIC) or SCTP
// packets crosses a veth whole. The former is lost when a tunnel header made in
// eBPF is stripped from it, for the tunnel's mark stays on the packet; the latter
// can have no such header at all, since its packets may differ in length.
func trains() []string { return []string{"tx-udp-segmentation", "tx-sctp-segmentation"} }

// disableTrains makes the kernel cut trains before they enter the device: the pod's
// end of its veth, and the host's of the host pair. It asks over ethtool's netlink
// family, by the features' names (kernel documentation, networking/ethtool-netlink).
func disableTrains(device string) error {
	family, err := netlink.GenlFamilyGet(unix.ETHTOOL_GENL_NAME)
	if err != nil {
		return fmt.Errorf("find ethtool's netlink family (CONFIG_ETHTOOL_NETLINK): %w", err)
	}
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	req.AddData(&nl.Genlmsg{Command: unix.ETHTOOL_MSG_FEATURES_SET, Version: unix.ETHTOOL_GENL_VERSION})
	header := nl.NewRtAttr(unix.ETHTOOL_A_FEATURES_HEADER|unix.NLA_F_NESTED, nil)
	header.AddRtAttr(unix.ETHTOOL_A_HEADER_DEV_NAME, nl.ZeroTerminated(device))
	header.AddRtAttr(unix.ETHTOOL_A_HEADER_FLAGS, nl.Uint32Attr(unix.ETHTOOL_FLAG_OMIT_REPLY))
	wanted := nl.NewRtAttr(unix.ETHTOOL_A_FEATURES_WANTED|unix.NLA_F_NESTED, nil)
	bits := wanted.AddRtAttr(unix.ETHTOOL_A_BITSET_BITS|unix.NLA_F_NESTED, nil)
	for _, feature := range trains() { // a bit without a value is off
		bits.AddRtAttr(unix.ETHTOOL_A_BITSET_BITS_BIT|unix.NLA_F_NESTED, nil).
			AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_NAME, nl.ZeroTerminated(feature))
	}
	req.AddData(header)
	req.AddData(wanted)
	if _, err := req.Execute(unix.NETLINK_GENERIC, 0); err != nil {
		return fmt.Errorf("turn off %s on %s: %w", strings.Join(trains(), ", "), device, err)
	}
	return nil
}
