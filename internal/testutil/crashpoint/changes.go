// SPDX-License-Identifier: Apache-2.0

package crashpoint

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// change names what a thread is about to change: a file, something of the
// network's, something of eBPF's; "" is nothing. Writes to open files and
// connections are none: each is between two others.
func change(pid, tid int) string {
	c, ok := entered(tid)
	if !ok {
		return ""
	}
	switch c.nr {
	case unix.SYS_BPF:
		return bpfCommand(c.args[0])
	case unix.SYS_SENDTO:
		if family := memory(pid, c.args[4], 2); len(family) == 2 && binary.NativeEndian.Uint16(family) == unix.AF_NETLINK {
			return netlinkRequest(memory(pid, c.args[1], unix.SizeofNlMsghdr))
		}
	case unix.SYS_OPENAT:
		if c.args[2]&(unix.O_WRONLY|unix.O_RDWR) != 0 {
			if path := text(pid, c.args[1]); !bytes.HasPrefix([]byte(path), []byte("/dev/")) {
				return "open for writing " + path
			}
		}
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		return "rename to " + text(pid, c.args[3])
	case unix.SYS_UNLINKAT:
		return "remove " + text(pid, c.args[1])
	case unix.SYS_IOCTL:
		if c.args[1] == unix.SIOCETHTOOL && setsFeatures(pid, c.args[2]) {
			return "ethtool: features"
		}
	}
	return ""
}

// setsFeatures looks into struct ifreq: a name and a pointer to what is asked.
func setsFeatures(pid int, ifreq uint64) bool {
	const pointer, word = 8, 4
	at := memory(pid, ifreq+unix.IFNAMSIZ, pointer)
	if len(at) < pointer {
		return false
	}
	cmd := memory(pid, binary.NativeEndian.Uint64(at), word)
	return len(cmd) == word && binary.NativeEndian.Uint32(cmd) == unix.ETHTOOL_SFEATURES
}

func bpfCommand(cmd uint64) string {
	return map[uint64]string{
		unix.BPF_MAP_UPDATE_ELEM: "bpf: update an element", unix.BPF_MAP_DELETE_ELEM: "bpf: delete an element",
		unix.BPF_MAP_UPDATE_BATCH: "bpf: update elements", unix.BPF_MAP_DELETE_BATCH: "bpf: delete elements",
		unix.BPF_OBJ_PIN: "bpf: pin", unix.BPF_LINK_CREATE: "bpf: make a link", unix.BPF_LINK_UPDATE: "bpf: change a link",
		unix.BPF_LINK_DETACH: "bpf: detach a link",
	}[cmd]
}

// netlinkRequest names requests that change something.
func netlinkRequest(header []byte) string {
	const typeAt = 4
	if len(header) < unix.SizeofNlMsghdr {
		return ""
	}
	kind := binary.NativeEndian.Uint16(header[typeAt:])
	name, ok := map[uint16]string{
		unix.RTM_NEWLINK: "device", unix.RTM_SETLINK: "device", unix.RTM_DELLINK: "remove device",
		unix.RTM_NEWADDR: "address", unix.RTM_DELADDR: "remove address",
		unix.RTM_NEWROUTE: "route", unix.RTM_DELROUTE: "remove route",
		unix.RTM_NEWQDISC: "qdisc", unix.RTM_DELQDISC: "remove qdisc",
		unix.RTM_NEWTFILTER: "filter", unix.RTM_DELTFILTER: "remove filter",
	}[kind]
	if !ok {
		return ""
	}
	return fmt.Sprintf("netlink: %s", name)
}

// memory reads a process's memory; nil when it cannot be read.
func memory(pid int, at uint64, size int) []byte {
	out := make([]byte, size)
	if at == 0 {
		return nil
	}
	n, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &out[0], Len: uint64(size)}},
		[]unix.RemoteIovec{{Base: uintptr(at), Len: size}}, 0)
	if err != nil {
		return nil
	}
	return out[:n]
}

// text reads a path.
func text(pid int, at uint64) string {
	const most, page = 256, 4096
	size := min(most, page-int(at%page)) // not over the end of what is mapped
	b, _, _ := bytes.Cut(memory(pid, at, size), []byte{0})
	return string(b)
}
