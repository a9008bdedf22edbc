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

	"github.com/hawser-mesh/hawser/datapath/features"
)

// Elsewhere lists where programs of ours sit that are not those pinned under the
// path: on devices of the current network namespace and on cgroups, of which it
// looks at the given one (empty: the root, but in a network namespace that is not
// the host's) and at those that this process is in. What it lists is another
// agent's, or of pins in another place or lost; to remove one takes it off there.
func Elsewhere(pinPath, cgroup string) ([]Object, error) {
	own := pinnedUnder(pinPath)
	devices, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var out []Object
	if tcx, err := features.TCX(); tcx || err != nil {
		for _, l := range devices {
			objects, err := own.otherLinks(l.Attrs().Index, l.Attrs().Name)
			if err != nil {
				return nil, err
			}
			out = append(out, objects...)
		}
	}
	filters, err := filterObjects()
	if err != nil {
		return nil, err
	}
	for _, f := range filters {
		if _, ours := own.names(ebpf.ProgramID(f.Program), nil); !ours {
			out = append(out, f)
		}
	}
	if !features.Sockets() {
		return out, nil
	}
	for _, dir := range cgroupsOfHost(cgroup) {
		objects, err := own.otherSockets(dir)
		if err != nil {
			return nil, err
		}
		out = append(out, objects...)
	}
	return out, nil
}

// pinned are the kernel's numbers of what is pinned under a path.
type pinned struct {
	links    map[link.ID]bool
	programs map[ebpf.ProgramID]bool // those of links, too
	maps     map[ebpf.MapID]bool
}

func pinnedUnder(pinPath string) pinned {
	own := pinned{map[link.ID]bool{}, map[ebpf.ProgramID]bool{}, map[ebpf.MapID]bool{}}
	pins, _ := linkPins(pinPath) // the pattern is well formed
	for _, pin := range pins {
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			continue
		}
		if info, err := l.Info(); err == nil {
			own.links[info.ID], own.programs[info.Program] = true, true
		}
		_ = l.Close()
	}
	for _, o := range pinObjects(pinPath) {
		if o.Kind == KindProgram {
			own.programs[ebpf.ProgramID(o.ID)] = true
		} else {
			own.maps[ebpf.MapID(o.ID)] = true
		}
	}
	return own
}

// names is a program's name, and whether it is of these pins: one that an agent had
// replaced half-way is no longer pinned, but uses the same maps. The name is empty
// when the program is gone, or is not one of those.
func (p pinned) names(id ebpf.ProgramID, among []string) (name string, ours bool) {
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return "", errors.Is(err, os.ErrNotExist)
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return "", false
	}
	if slices.Contains(among, info.Name) {
		name = info.Name
	}
	used, _ := info.MapIDs()
	return name, p.programs[id] || slices.ContainsFunc(used, func(m ebpf.MapID) bool { return p.maps[m] })
}

// otherLinks are links on a device with programs of ours that are not of these pins.
func (p pinned) otherLinks(ifindex int, dev string) (out []Object, err error) {
	for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		on, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: at})
		if errors.Is(err, unix.ENODEV) {
			return out, nil // it went meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list programs on device %s: %w", dev, err)
		}
		for _, a := range on.Programs {
			id, linked := a.LinkID()
			if !linked || p.links[id] {
				continue
			}
			if name, _ := p.names(a.ID, devicePrograms()); name != "" {
				out = append(out, Object{
					Kind: KindLink, Name: name + pinSeparator + dev, ID: uint32(id), Program: uint32(a.ID),
					remove: func() error { return detachLink(id) },
				})
			}
		}
	}
	return out, nil
}

func detachLink(id link.ID) error {
	l, err := link.NewFromID(id)
	if err != nil {
		return err
	}
	return errors.Join(l.Detach(), l.Close())
}

// otherSockets are the places on a cgroup with programs of ours that are not of
// these pins. A cgroup that is gone has none.
func (p pinned) otherSockets(cgroup string) (out []Object, err error) {
	dir, err := os.Open(cgroup)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list programs on a cgroup: %w", err)
	}
	defer dir.Close()
	for _, name := range sortedKeys(socketPrograms()) {
		on, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: socketPrograms()[name]})
		if err != nil {
			return nil, fmt.Errorf("list programs on cgroup %s: %w", cgroup, err)
		}
		for _, a := range on.Programs {
			if is, ours := p.names(a.ID, []string{name}); is != "" && !ours {
				out = append(out, Object{
					Kind: KindLink, Name: name + pinSeparator + cgroup, Program: uint32(a.ID),
					remove: func() error { return detachFrom(cgroup, a.ID) },
				})
			}
		}
	}
	return out, nil
}

// detachFrom takes a program off a cgroup; the kernel tells by its links only which
// link that is.
func detachFrom(cgroup string, prog ebpf.ProgramID) error {
	var st unix.Stat_t
	if err := unix.Stat(cgroup, &st); err != nil {
		return fmt.Errorf("cgroup %s: %w", cgroup, err)
	}
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		if err != nil || info.Program != prog || info.Cgroup() == nil || info.Cgroup().CgroupId != st.Ino {
			continue
		}
		if err := it.Link.Detach(); err != nil {
			return err
		}
	}
	return it.Err()
}

// cgroupsOfHost are the cgroups whose programs are this host's: see Elsewhere.
func cgroupsOfHost(given string) (out []string) {
	root, err := CgroupRoot()
	if given != "" {
		out = append(out, given)
	} else if err == nil && inHostNetwork() {
		out = append(out, root)
	}
	if err != nil {
		return out // then this process is in none
	}
	data, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(data)) {
		own, v2 := strings.CutPrefix(strings.TrimSpace(line), "0::/")
		for ; v2 && own != "" && own != "." && !strings.HasPrefix(own, ".."); own = filepath.Dir(own) {
			if dir := filepath.Join(root, own); !slices.Contains(out, dir) {
				out = append(out, dir)
			}
		}
	}
	return out
}

// inHostNetwork reports whether the current network namespace is the first process's.
func inHostNetwork() bool {
	host, err := os.Readlink("/proc/1/ns/net")
	own, err2 := os.Readlink("/proc/thread-self/ns/net")
	return err == nil && err2 == nil && host == own
}
