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

// A link's pin is named after the program and the device it is on.
const pinSeparator = "@"

// Attachment is one program on one device.
type Attachment struct {
	Program string
	Device  string // or "cgroup"
	LinkID  uint32 // 0 with clsact
}

// fromPod is the program on the host's end of a pod's veth.
const fromPod = "from_pod"

// AttachEndpoint puts from_pod on the host's end of a pod's veth. It is
// idempotent and returns when packets are seen: a filter does at once, and
// RunSettle makes a link of it later, which takes the kernel a hundred times
// longer.
func (d *Datapath) AttachEndpoint(dev string) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("attach %s to %s: %w", fromPod, dev, err)
	}
	if d.tcx && onDevice(d.linkPin(fromPod, dev), fromPod, l.Attrs().Index) {
		return nil
	}
	if err := replaceFilter(d.program(fromPod), fromPod, l); err != nil {
		return err
	}
	if !d.tcx {
		return d.unpin(fromPod, dev)
	}
	d.unsettle(dev)
	return nil
}

// AttachUnderlay puts from_overlay on the underlay device.
func (d *Datapath) AttachUnderlay() error { return d.attach("from_overlay", d.cfg.UnderlayDevice) }

// fromStack is the program at the egress of the host's end of the host veth.
const fromStack = "from_stack"

// AttachHost puts from_host on the inner end of the host veth, and from_stack before
// it, which tells it what the host merely forwards.
func (d *Datapath) AttachHost() error {
	return errors.Join(d.attach(fromStack, d.cfg.HostDevice), d.attach("from_host", d.cfg.NetDevice))
}

// hook is where on a device a program sits: the TCX hook, and the place of filters.
func hook(prog string) (attach ebpf.AttachType, parent uint32) {
	if prog == fromStack {
		return ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS
	}
	return ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS
}

// DetachEndpoint takes from_pod off a device; a device that is gone or has none
// is no error.
func (d *Datapath) DetachEndpoint(dev string) error {
	d.forgetUnsettled(dev)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.unpin(fromPod, dev); err != nil {
		return fmt.Errorf("detach %s: %w", dev, err)
	}
	return removeFilter(fromPod, dev)
}

// unpin removes a link's pin, if there is one; an unpinned link goes.
func (d *Datapath) unpin(prog, dev string) error {
	err := os.Remove(d.linkPin(prog, dev))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin the link of %s on %s: %w", prog, dev, err)
	}
	return nil
}

func (d *Datapath) linkPin(prog, dev string) string {
	return d.pinPath(linksDir, prog+pinSeparator+dev)
}

func (d *Datapath) program(name string) *ebpf.Program {
	switch name {
	case fromPod:
		return d.progs.FromPod
	case "from_overlay":
		return d.progs.FromOverlay
	case fromStack:
		return d.progs.FromStack
	case fromTunnel:
		return d.progs.FromTunnel
	}
	return d.progs.FromHost
}

func (d *Datapath) attach(prog, dev string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tcx {
		return d.attachLink(prog, dev)
	}
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("attach %s to %s: %w", prog, dev, err)
	}
	if !hasFilter(d.program(prog), prog, l) {
		if err := replaceFilter(d.program(prog), prog, l); err != nil {
			return err
		}
	}
	return d.unpin(prog, dev)
}

// attachLink puts a program on a device by a link, in place of a filter that may
// be there: while both are, only the link's program sees a packet. It takes an
// RCU grace period. The caller holds mu.
func (d *Datapath) attachLink(prog, dev string) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("attach %s to %s: %w", prog, dev, err)
	}
	pin := d.linkPin(prog, dev)
	if onDevice(pin, prog, l.Attrs().Index) {
		return nil
	}
	if err := d.unpin(prog, dev); err != nil {
		return err
	}
	attach, _ := hook(prog)
	tcx, err := link.AttachTCX(link.TCXOptions{
		Interface: l.Attrs().Index, Program: d.program(prog), Attach: attach,
	})
	if err != nil {
		return fmt.Errorf("attach %s to %s: %w", prog, dev, err)
	}
	defer tcx.Close()
	if err := tcx.Pin(pin); err != nil {
		return fmt.Errorf("pin link %s: %w", pin, err)
	}
	return removeFilter(prog, dev)
}

// onDevice reports whether a pinned link is on the device that has this index here.
// The device is asked: what a link says is the index in its own network namespace,
// which may be another one that is still alive.
func onDevice(pin, prog string, ifindex int) bool {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return false
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil || info.TCX() == nil {
		return false
	}
	attach, _ := hook(prog)
	on, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: attach})
	return err == nil && slices.ContainsFunc(on.Programs, func(p link.AttachedProgram) bool {
		id, ok := p.LinkID()
		return ok && id == info.ID
	})
}

// switchPrograms makes every pinned link and every filter of ours run the new
// programs, one atomic step each, and then the slots that these jump to.
func (d *Datapath) switchPrograms(progs map[string]*ebpf.Program) error {
	pins, err := linkPins(d.cfg.PinPath)
	if err != nil {
		return err
	}
	for _, pin := range pins {
		prog, dev := splitPin(pin)
		if progs[prog] == nil {
			continue
		}
		if err := updateLink(pin, progs[prog]); err != nil {
			return fmt.Errorf("replace %s on %s: %w", prog, dev, err)
		}
	}
	filters, err := filterObjects()
	if err != nil {
		return err
	}
	for _, f := range filters {
		prog, dev := splitPin(f.Name)
		if progs[prog] == nil {
			continue
		}
		l, err := netlink.LinkByName(dev)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue
		}
		if err == nil {
			err = replaceFilter(progs[prog], prog, l)
		}
		if err != nil {
			return fmt.Errorf("replace %s on %s: %w", prog, dev, err)
		}
	}
	return d.fillSlots(progs)
}

// pinPrograms pins the programs in place of those before.
func (d *Datapath) pinPrograms(progs map[string]*ebpf.Program) error {
	for name, p := range progs {
		path := d.pinPath(programsDir, name)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("unpin old program %s: %w", name, err)
		}
		if err := p.Pin(path); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
	}
	return nil
}

// slotPrograms are the programs that others jump to, at their places in the map
// slots (bpf/lib/slots.h).
func slotPrograms() []string {
	return []string{"from_pod6", "from_overlay6", "from_host6", fromTunnel6}
}

func (d *Datapath) fillSlots(progs map[string]*ebpf.Program) error {
	for _, name := range slotPrograms() {
		if progs[name] == nil {
			continue // whoever jumps there is taken off first (detachTunnel)
		}
		if err := d.fillSlot(name, progs[name]); err != nil {
			return err
		}
	}
	return nil
}

// fillSlot puts a program into its slot; nil empties it.
func (d *Datapath) fillSlot(name string, prog *ebpf.Program) error {
	at := uint32(slices.Index(slotPrograms(), name))
	if prog == nil {
		if err := d.pins["slots"].Delete(at); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("empty the slot of %s: %w", name, err)
		}
		return nil
	}
	if err := d.pins["slots"].Put(at, prog); err != nil {
		return fmt.Errorf("put %s into its slot: %w", name, err)
	}
	return nil
}

// splitPin takes a link's pin, or a filter's name, apart.
func splitPin(pin string) (prog, dev string) {
	prog, dev, _ = strings.Cut(filepath.Base(pin), pinSeparator)
	return prog, dev
}

// updateLink replaces a link's program; a link whose device is gone is removed.
func updateLink(pin string, prog *ebpf.Program) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	err = l.Update(prog)
	if errors.Is(err, unix.ENOLINK) {
		return os.Remove(pin)
	}
	return err
}

func linkPins(pinPath string) ([]string, error) {
	pins, err := filepath.Glob(filepath.Join(pinPath, linksDir, "*"+pinSeparator+"*"))
	if err != nil {
		return nil, fmt.Errorf("list links of %s: %w", pinPath, err)
	}
	slices.Sort(pins)
	return pins, nil
}

// Attachments lists what is attached by links, sorted by program and device.
func (d *Datapath) Attachments() ([]Attachment, error) {
	pins, err := linkPins(d.cfg.PinPath)
	if err != nil {
		return nil, err
	}
	var out []Attachment
	for _, pin := range pins {
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			return nil, fmt.Errorf("open link %s: %w", pin, err)
		}
		info, err := l.Info()
		_ = l.Close()
		if err != nil {
			return nil, fmt.Errorf("describe link %s: %w", pin, err)
		}
		prog, dev := splitPin(pin)
		out = append(out, Attachment{Program: prog, Device: dev, LinkID: uint32(info.ID)})
	}
	return out, nil
}

// PruneLinks unpins the links of devices that are gone, and returns how many.
func (d *Datapath) PruneLinks() (n int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	pins, err := linkPins(d.cfg.PinPath)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, pin := range pins {
		_, dev := splitPin(pin)
		if dev == cgroupDevice {
			continue
		}
		if _, err := netlink.LinkByName(dev); !errors.As(err, &netlink.LinkNotFoundError{}) {
			continue
		}
		errs = append(errs, os.Remove(pin))
		n++
	}
	return n, errors.Join(errs...)
}
