// SPDX-License-Identifier: Apache-2.0

package crashpoint

import (
	"bytes"
	"fmt"

	"golang.org/x/sys/unix"
)

// entry is a change as the program in the kernel notes it.
type entry struct {
	Call uint64   // number of the system call
	What uint64   // bpf: the command; netlink: the message's type
	Path [48]byte // of a file, ends with zeros
}

// bpfCommands change something that others see.
func bpfCommands() map[uint64]string {
	return map[uint64]string{
		unix.BPF_MAP_UPDATE_ELEM: "bpf: update an element", unix.BPF_MAP_DELETE_ELEM: "bpf: delete an element",
		unix.BPF_MAP_UPDATE_BATCH: "bpf: update elements", unix.BPF_MAP_DELETE_BATCH: "bpf: delete elements",
		unix.BPF_OBJ_PIN: "bpf: pin", unix.BPF_LINK_CREATE: "bpf: make a link", unix.BPF_LINK_UPDATE: "bpf: change a link",
		unix.BPF_LINK_DETACH: "bpf: detach a link",
	}
}

// netlinkMessages change something of the network's.
func netlinkMessages() map[uint64]string {
	return map[uint64]string{
		unix.RTM_NEWLINK: "netlink: device", unix.RTM_SETLINK: "netlink: device", unix.RTM_DELLINK: "netlink: remove device",
		unix.RTM_NEWADDR: "netlink: address", unix.RTM_DELADDR: "netlink: remove address",
		unix.RTM_NEWROUTE: "netlink: route", unix.RTM_DELROUTE: "netlink: remove route",
		unix.RTM_NEWQDISC: "netlink: qdisc", unix.RTM_DELQDISC: "netlink: remove qdisc",
		unix.RTM_NEWTFILTER: "netlink: filter", unix.RTM_DELTFILTER: "netlink: remove filter",
	}
}

// mask has a bit for each number, all of which are below 64.
func mask(numbers map[uint64]string) (m int64) {
	for n := range numbers {
		m |= 1 << n
	}
	return m
}

func (e entry) String() string {
	path, _, _ := bytes.Cut(e.Path[:], []byte{0})
	switch e.Call {
	case unix.SYS_BPF:
		return bpfCommands()[e.What]
	case unix.SYS_SENDTO:
		return netlinkMessages()[e.What]
	case unix.SYS_OPENAT:
		return fmt.Sprintf("open for writing %s", path)
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		return fmt.Sprintf("rename to %s", path)
	case unix.SYS_UNLINKAT:
		return fmt.Sprintf("remove %s", path)
	}
	return "ethtool: features"
}
