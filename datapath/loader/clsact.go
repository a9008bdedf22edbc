// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Our place among the device's filters.
const (
	filterHandle   = 0x4857
	filterPriority = 1
)

func clsact(index int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

func filterAttrs(index int, prog string) netlink.FilterAttrs {
	_, parent := hook(prog)
	return netlink.FilterAttrs{
		LinkIndex: index, Parent: parent, Handle: filterHandle,
		Protocol: unix.ETH_P_ALL, Priority: filterPriority,
	}
}

// replaceFilter puts the program on its hook of the device where the kernel has no
// links for that; an older one of ours is replaced in one step.
func replaceFilter(prog *ebpf.Program, name string, l netlink.Link) error {
	index := l.Attrs().Index
	if err := netlink.QdiscAdd(clsact(index)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact to %s: %w", l.Attrs().Name, err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: filterAttrs(index, name), Fd: prog.FD(), Name: name, DirectAction: true,
	}
	if err := netlink.FilterReplace(filter); err != nil {
		return fmt.Errorf("attach %s to %s: %w", name, l.Attrs().Name, err)
	}
	return nil
}

// hasFilter reports whether replaceFilter has nothing to do. When that cannot be
// told, it has.
func hasFilter(prog *ebpf.Program, name string, l netlink.Link) bool {
	info, err := prog.Info()
	if err != nil {
		return false
	}
	id, _ := info.ID()
	want := filterAttrs(l.Attrs().Index, name)
	filters, err := netlink.FilterList(l, want.Parent)
	return err == nil && slices.ContainsFunc(filters, func(f netlink.Filter) bool {
		b, ok := f.(*netlink.BpfFilter)
		return ok && b.Handle == want.Handle && b.Priority == want.Priority && b.Name == name && b.DirectAction && id != 0 && b.Id == int(id)
	})
}

func removeFilter(name, dev string) error {
	l, err := netlink.LinkByName(dev)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", dev, err)
	}
	err = netlink.FilterDel(&netlink.BpfFilter{FilterAttrs: filterAttrs(l.Attrs().Index, name), Name: name})
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("detach %s from %s: %w", name, dev, err)
	}
	return nil
}
