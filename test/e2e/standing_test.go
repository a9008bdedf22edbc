// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// cmdStanding is `standing NODE`: the node's pinned links are on devices that are
// there, and its maps have no endpoint, by address or by index, whose device is gone,
// and no flow of a pod's address that no endpoint has.
func cmdStanding(s *script, args []string) (string, error) {
	if len(args) != 1 || s.world.nodes[args[0]] == nil {
		return "", usage("standing NODE")
	}
	n := s.world.nodes[args[0]]
	var stale []string
	err := nsthread.InNetns(n.Netns, func() error {
		links, err1 := staleLinks(n.PinPath)
		known, endpoints, err2 := staleEndpoints(n.PinPath)
		flows, err3 := staleFlows(n.PinPath, n.PodCIDR, known)
		stale = append(append(links, endpoints...), flows...)
		return errors.Join(err1, err2, err3)
	})
	if err == nil && len(stale) > 0 {
		err = no("without a device:\n  %s", strings.Join(stale, "\n  "))
	}
	return "", err
}

func staleLinks(pins string) (stale []string, err error) {
	found, _ := filepath.Glob(filepath.Join(pins, "links", "*@*")) // the pattern is well formed
	if len(found) == 0 {
		return nil, fmt.Errorf("no links in %s", pins)
	}
	for _, pin := range found {
		_, dev, _ := strings.Cut(filepath.Base(pin), "@")
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			return nil, err
		}
		info, err := l.Info()
		_ = l.Close()
		if err != nil {
			return nil, err
		}
		switch tcx := info.TCX(); {
		case dev == "cgroup":
			if info.Cgroup() == nil || info.Cgroup().CgroupId == 0 {
				stale = append(stale, "link "+filepath.Base(pin))
			}
		case tcx == nil:
			return nil, fmt.Errorf("link %s is not on a device", pin)
		default:
			if d, err := netlink.LinkByName(dev); err != nil || d.Attrs().Index != int(tcx.Ifindex) {
				stale = append(stale, "link "+filepath.Base(pin))
			}
		}
	}
	return stale, nil
}

func staleEndpoints(pins string) (known map[netip.Addr]bool, stale []string, err error) {
	known = map[netip.Addr]bool{}
	err = dumpPinned(pins, "endpoints", func(k maps.IPKey, e maps.Endpoint) {
		known[k.Addr.Netip()] = true
		if !netdev.Stands(int(e.IfIndex), e.HostMAC, "") {
			stale = append(stale, fmt.Sprintf("endpoint %v", k.Addr.Netip()))
		}
	})
	err = errors.Join(err, dumpPinned(pins, "ep_devices", func(index uint32, e maps.Endpoint) {
		if e.ID != 0 && !netdev.Stands(int(index), e.HostMAC, "") {
			stale = append(stale, fmt.Sprintf("endpoint of device %d", index))
		}
	}))
	return known, stale, err
}

func staleFlows(pins string, pods netip.Prefix, known map[netip.Addr]bool) (stale []string, err error) {
	for _, name := range []string{"ct4", "ct4_open"} {
		err = errors.Join(err, dumpPinned(pins, name, func(k maps.Tuple4, _ maps.CTEntry) {
			for _, end := range [][4]byte{k.Source, k.Destination} {
				if a := netip.AddrFrom4(end); pods.Contains(a) && !known[a] {
					stale = append(stale, fmt.Sprintf("flow of %v", a))
				}
			}
		}))
	}
	return stale, err
}

func dumpPinned[K, V comparable](pins, name string, each func(K, V)) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(pins, "maps", name), nil)
	if err != nil {
		return err
	}
	defer m.Close()
	return maps.DumpBatches(m, each)
}
