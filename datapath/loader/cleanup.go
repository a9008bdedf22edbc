// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kinds of objects.
const (
	KindLink    = "link"
	KindFilter  = "filter"
	KindProgram = "program"
	KindMap     = "map"
	KindPins    = "pins"
)

// Object is something of a datapath that stays in the kernel without an agent.
type Object struct {
	Kind string
	Name string
	// ID is the kernel's number of it, 0 where it has none.
	ID uint32
	// Program is the kernel's number of the program that it has packets or sockets
	// see, where that is known.
	Program uint32
	remove  func() error
}

// Remove takes it away. One that is gone is no error.
func (o Object) Remove() error {
	if err := o.remove(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s %s: %w", o.Kind, o.Name, err)
	}
	return nil
}

// Gone reports whether the kernel has it no more: a program or a map outlives
// its pin as long as somebody holds it, and for the blink of an eye after.
func (o Object) Gone() bool {
	var err error
	switch {
	case o.ID == 0:
		return true
	case o.Kind == KindLink:
		var l link.Link
		if l, err = link.NewFromID(link.ID(o.ID)); err == nil {
			_ = l.Close()
		}
	case o.Kind == KindMap:
		return !MapExists(o.ID)
	default:
		var p *ebpf.Program
		if p, err = ebpf.NewProgramFromID(ebpf.ProgramID(o.ID)); err == nil {
			_ = p.Close()
		}
	}
	return errors.Is(err, os.ErrNotExist)
}

// MapExists reports whether the kernel has a map of this number, without opening
// it: the last one to close a program array has the kernel clear it, and one who
// opens and closes it again before that is done leaves a reference that nobody
// ever gives back (prog_array_map_clear, Linux 6.18).
func MapExists(id uint32) bool {
	next, err := ebpf.MapGetNextID(ebpf.MapID(id - 1))
	return err == nil && next == ebpf.MapID(id)
}

// Inventory lists what a datapath has in the kernel: what is pinned under the
// path, and the filters of our programs on devices of the current network
// namespace. The order is one in which it can be removed: what takes packets
// first, what it uses after. A directory that is no agent's is an error.
func Inventory(pinPath string) ([]Object, error) {
	if err := checkPins(pinPath); err != nil {
		return nil, err
	}
	links, err := linkObjects(pinPath)
	if err != nil {
		return nil, err
	}
	filters, err := filterObjects()
	if err != nil {
		return nil, err
	}
	out := slices.Concat(links, filters, pinObjects(pinPath))
	if _, err := os.Stat(pinPath); err == nil {
		out = append(out, Object{Kind: KindPins, Name: pinPath, remove: func() error { return os.RemoveAll(pinPath) }})
	}
	return out, nil
}

// checkPins refuses a directory that no agent made for its pins, which would be
// removed with all that is in it: agents have directories for maps, programs and links,
// the pins of pinFiles beside them, and nothing outside of a BPF file system.
func checkPins(pinPath string) error {
	entries, err := os.ReadDir(pinPath)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read pins: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(pinPath, &st); err != nil {
		return fmt.Errorf("read pins: statfs %s: %w", pinPath, err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s has files and is on no BPF file system: it is no agent's directory of pins; nothing was removed", pinPath)
	}
	ours := false
	for _, e := range entries {
		kind, names := "pin", pinFiles()
		if e.IsDir() {
			kind, names = "directory", pinDirs()
		}
		if !slices.Contains(names, e.Name()) {
			return fmt.Errorf("%s has a %s %s, as no agent's directory of pins has: give that of one agent; nothing was removed", pinPath, kind, e.Name())
		}
		ours = ours || e.IsDir()
	}
	if !ours {
		return fmt.Errorf("%s has none of the directories %s that an agent has for its pins: give that of one agent; nothing was removed",
			pinPath, strings.Join(pinDirs(), ", "))
	}
	return nil
}

func linkObjects(pinPath string) ([]Object, error) {
	pins, err := linkPins(pinPath)
	if err != nil {
		return nil, err
	}
	var out []Object
	for _, pin := range pins {
		o := Object{Kind: KindLink, Name: filepath.Base(pin), remove: func() error { return removeLink(pin) }}
		if l, err := link.LoadPinnedLink(pin, nil); err == nil {
			if info, err := l.Info(); err == nil {
				o.ID, o.Program = uint32(info.ID), uint32(info.Program)
			}
			_ = l.Close()
		}
		out = append(out, o)
	}
	return out, nil
}

func removeLink(pin string) error {
	if l, err := link.LoadPinnedLink(pin, nil); err == nil {
		_ = l.Detach() // also where someone else holds the link open
		_ = l.Close()
	}
	return os.Remove(pin)
}

// pinObjects are the pinned programs and maps, with the maps inside of maps.
func pinObjects(pinPath string) []Object {
	var out []Object
	pins, _ := filepath.Glob(filepath.Join(pinPath, "*")) // the pattern is well formed
	deeper, _ := filepath.Glob(filepath.Join(pinPath, "*", "*"))
	for _, pin := range append(pins, deeper...) {
		name := filepath.Base(pin)
		if p, err := ebpf.LoadPinnedProgram(pin, nil); err == nil {
			o := Object{Kind: KindProgram, Name: name, remove: func() error { return os.Remove(pin) }}
			if info, err := p.Info(); err == nil {
				id, _ := info.ID()
				o.ID = uint32(id)
			}
			_ = p.Close()
			out = append(out, o)
			continue
		}
		m, err := ebpf.LoadPinnedMap(pin, nil)
		if err != nil {
			continue // a directory, or a link
		}
		o := Object{Kind: KindMap, Name: name, remove: func() error { return os.Remove(pin) }}
		if info, err := m.Info(); err == nil {
			id, _ := info.ID()
			o.ID = uint32(id)
		}
		out = append(out, o)
		_ = m.Close()
	}
	slices.SortStableFunc(out, func(a, b Object) int { return strings.Compare(b.Kind, a.Kind) }) // programs first
	return out
}

// Cleanup detaches and unpins everything under a pin path, and reports an error
// if anything is left. Traffic of the node's pods stops. Filters of the clsact
// make are removed from devices of the current network namespace.
func Cleanup(pinPath string) error {
	objects, err := Inventory(pinPath)
	if err != nil {
		return err
	}
	var errs []error
	for _, o := range objects {
		errs = append(errs, o.Remove())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up %s: %w", pinPath, err)
	}
	if left, _ := filepath.Glob(filepath.Join(pinPath, "*", "*")); len(left) != 0 {
		return fmt.Errorf("clean up %s: still there: %v", pinPath, left)
	}
	return nil
}

// filterObjects are the filters that hold our programs.
func filterObjects() ([]Object, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var out []Object
	for _, l := range links {
		for _, b := range ourFilters(l) {
			dev := l.Attrs().Name
			out = append(out, Object{Kind: KindFilter, Name: b.Name + pinSeparator + dev, ID: uint32(b.Id), Program: uint32(b.Id), remove: func() error {
				return errors.Join(removeFilter(b.Name, dev), removeIdleClsact(dev))
			}})
		}
	}
	return out, nil
}

// ourFilters are the filters of a device that hold our programs; a device that went
// meanwhile has none.
func ourFilters(l netlink.Link) (out []*netlink.BpfFilter) {
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := netlink.FilterList(l, parent)
		if err != nil {
			continue
		}
		for _, f := range filters {
			b, ok := f.(*netlink.BpfFilter)
			if ok && f.Attrs().Handle == filterHandle && slices.Contains(devicePrograms(), b.Name) {
				out = append(out, b)
			}
		}
	}
	return out
}

// devicePrograms are those that sit on devices.
func devicePrograms() []string {
	return []string{fromPod, "from_overlay", "from_host", fromStack, fromTunnel}
}

// removeIdleClsact removes a device's clsact when it has no filter left: it does
// nothing then, and we have added it.
func removeIdleClsact(dev string) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return nil // gone, with all that was on it
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if filters, err := netlink.FilterList(l, parent); err != nil || len(filters) > 0 {
			return nil
		}
	}
	if err := netlink.QdiscDel(clsact(l.Attrs().Index)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove clsact of %s: %w", dev, err)
	}
	return nil
}
