// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath/features"
)

// cgroupDevice stands in a pin's name for the device.
const cgroupDevice = "cgroup"

// socketPrograms are those that sit on a cgroup, with their places.
func socketPrograms() map[string]ebpf.AttachType {
	return map[string]ebpf.AttachType{
		"sock_connect4":  ebpf.AttachCGroupInet4Connect,
		"sock_sendmsg4":  ebpf.AttachCGroupUDP4Sendmsg,
		"sock_recvmsg4":  ebpf.AttachCGroupUDP4Recvmsg,
		"sock_peername4": ebpf.AttachCgroupInet4GetPeername,
		"sock_connect6":  ebpf.AttachCGroupInet6Connect,
		"sock_sendmsg6":  ebpf.AttachCGroupUDP6Sendmsg,
		"sock_recvmsg6":  ebpf.AttachCGroupUDP6Recvmsg,
		"sock_peername6": ebpf.AttachCgroupInet6GetPeername,
		"sock_closed4":   ebpf.AttachCgroupInetSockRelease,
	}
}

// dropSockets takes the socket programs out where the kernel has no place for
// them; services are balanced per packet then.
func dropSockets(spec *ebpf.CollectionSpec) {
	if features.Sockets() {
		return
	}
	for name := range socketPrograms() {
		delete(spec.Programs, name)
	}
}

func hasSockets(spec *ebpf.CollectionSpec) bool { return spec.Programs["sock_connect4"] != nil }

// CgroupRoot is where cgroup2 is mounted, alone or beside version 1.
func CgroupRoot() (string, error) {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], nil
		}
	}
	return "", errors.New("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

// ErrNoSockets says that the kernel has no hooks for sockets.
var ErrNoSockets = errors.New("this kernel has no programs on sockets (Linux 5.9, CONFIG_CGROUP_BPF)")

// AttachSockets puts the socket programs on a cgroup: they serve the processes
// in it and below it. It is idempotent; another cgroup takes the place of the
// one before.
func (d *Datapath) AttachSockets(cgroup string) error {
	if !d.sockets {
		return ErrNoSockets
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var st unix.Stat_t
	if err := unix.Stat(cgroup, &st); err != nil {
		return fmt.Errorf("cgroup %s: %w", cgroup, err)
	}
	progs := map[string]*ebpf.Program{
		"sock_connect4": d.progs.SockConnect4, "sock_sendmsg4": d.progs.SockSendmsg4,
		"sock_recvmsg4": d.progs.SockRecvmsg4, "sock_peername4": d.progs.SockPeername4,
		"sock_connect6": d.progs.SockConnect6, "sock_sendmsg6": d.progs.SockSendmsg6,
		"sock_recvmsg6": d.progs.SockRecvmsg6, "sock_peername6": d.progs.SockPeername6,
		"sock_closed4": d.progs.SockClosed4,
	}
	for name, at := range socketPrograms() {
		if err := d.attachSocket(name, progs[name], at, cgroup, st.Ino); err != nil {
			return errors.Join(err, d.detachSockets())
		}
	}
	return nil
}

func (d *Datapath) attachSocket(name string, prog *ebpf.Program, at ebpf.AttachType, cgroup string, id uint64) error {
	pin := d.linkPin(name, cgroupDevice)
	if onCgroup(pin, id) {
		return nil
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove stale link %s: %w", pin, err)
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: at, Program: prog})
	if err != nil {
		return fmt.Errorf("attach %s to cgroup %s: %w", name, cgroup, err)
	}
	defer l.Close()
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("pin link %s: %w", pin, err)
	}
	return nil
}

// DetachSockets takes the socket programs off. Sockets keep the backends that
// they have, and show them.
func (d *Datapath) DetachSockets() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.detachSockets()
}

func (d *Datapath) detachSockets() error {
	var errs []error
	for name := range socketPrograms() {
		pin := d.linkPin(name, cgroupDevice)
		if l, err := link.LoadPinnedLink(pin, nil); err == nil {
			errs = append(errs, l.Detach(), l.Close()) // removing the pin alone acts some time later
		}
		if err := os.Remove(pin); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("detach %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// onCgroup reports whether a pinned link is on the cgroup with that number.
func onCgroup(pin string, id uint64) bool {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return false
	}
	defer l.Close()
	info, err := l.Info()
	return err == nil && info.Cgroup() != nil && info.Cgroup().CgroupId == id
}
