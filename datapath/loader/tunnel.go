// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// fromTunnel is the program on the device that takes the tunnel's headers off;
// fromTunnel6 is what it jumps to.
const (
	fromTunnel  = "from_tunnel"
	fromTunnel6 = "from_tunnel6"
)

// dropTunnel takes the device's programs out where there is no device.
func dropTunnel(spec *ebpf.CollectionSpec) {
	delete(spec.Programs, fromTunnel)
	delete(spec.Programs, fromTunnel6)
}

// AttachTunnel puts from_tunnel on Config.TunnelDevice and sets the device up, in
// this order: nothing from the tunnel is seen without its program. Open has done so
// where the programs are new; it is idempotent, and makes good a device that went
// and came back. Without a device it does nothing: Open has taken the program off
// wherever an earlier start put it.
func (d *Datapath) AttachTunnel() error {
	if d.cfg.TunnelDevice == "" {
		return nil
	}
	if err := d.attach(fromTunnel, d.cfg.TunnelDevice); err != nil {
		return err
	}
	l, err := netlink.LinkByName(d.cfg.TunnelDevice)
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("set tunnel device %s up: %w", d.cfg.TunnelDevice, err)
	}
	return nil
}

// readyTunnel attaches new programs before any other sends packets their way: those
// that are there jump to none of them.
func (d *Datapath) readyTunnel(progs map[string]*ebpf.Program) error {
	if d.cfg.TunnelDevice == "" {
		return nil
	}
	if err := d.fillSlot(fromTunnel6, progs[fromTunnel6]); err != nil {
		return err
	}
	return d.AttachTunnel()
}

// detachTunnel takes from_tunnel off all devices, after which nobody jumps to
// from_tunnel6. Nothing may send packets to it any more. A device is set down first:
// without its program it would take the headers off for anybody.
func (d *Datapath) detachTunnel() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	pins, err := linkPins(d.cfg.PinPath)
	if err != nil {
		return err
	}
	var errs []error
	for _, pin := range pins {
		if prog, dev := splitPin(pin); prog == fromTunnel {
			errs = append(errs, downThen(dev, func() error { return removeLink(pin) }))
		}
	}
	filters, err := filterObjects()
	if err != nil {
		return err
	}
	for _, f := range filters {
		if prog, dev := splitPin(f.Name); prog == fromTunnel {
			errs = append(errs, downThen(dev, f.Remove))
		}
	}
	errs = append(errs, d.fillSlot(fromTunnel6, nil))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach %s: %w", fromTunnel, err)
	}
	return nil
}

// downThen removes what is on a device once the device is down, or gone.
func downThen(device string, remove func() error) error {
	l, err := netlink.LinkByName(device)
	if err == nil {
		err = netlink.LinkSetDown(l)
	}
	var gone netlink.LinkNotFoundError
	if err != nil && !errors.As(err, &gone) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("set %s down: %w", device, err)
	}
	return remove()
}
