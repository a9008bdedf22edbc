// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"slices"
	"time"
)

// A tcx link holds the kernel's rtnl lock for an RCU grace period,
// about ten milliseconds in which no other device of the host can be made.
const (
	// settleAfter is how long after the last new endpoint its link is made.
	settleAfter = time.Second
	// settlePause lets others have the lock between two links.
	settlePause = 50 * time.Millisecond
)

// unsettled are the devices whose filter is to become a link, oldest first.
type unsettled struct {
	devices []string
	changed time.Time
}

func (d *Datapath) unsettle(dev string) {
	d.settleMu.Lock()
	defer d.settleMu.Unlock()
	d.unsettled.changed = time.Now()
	if !slices.Contains(d.unsettled.devices, dev) {
		d.unsettled.devices = append(d.unsettled.devices, dev)
	}
}

func (d *Datapath) forgetUnsettled(dev string) {
	d.settleMu.Lock()
	defer d.settleMu.Unlock()
	d.unsettled.devices = slices.DeleteFunc(d.unsettled.devices, func(s string) bool { return s == dev })
}

// nextUnsettled is a device whose turn it is.
func (d *Datapath) nextUnsettled() (dev string, ok bool) {
	d.settleMu.Lock()
	defer d.settleMu.Unlock()
	if len(d.unsettled.devices) == 0 || time.Since(d.unsettled.changed) < settleAfter {
		return "", false
	}
	return d.unsettled.devices[0], true
}

// RunSettle turns the filters of new endpoints into links until the context
// ends, and returns nil then. A filter works as well as a link while the agent
// runs; a link is replaced with all others when programs change, and its pin
// tells who owns it.
func (d *Datapath) RunSettle(ctx context.Context) error {
	if !d.tcx {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(settlePause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		dev, ok := d.nextUnsettled()
		if !ok {
			continue
		}
		if err := d.settle(dev); err != nil {
			d.log.Warn("the endpoint keeps its filter, as it cannot have a link", "device", dev, "error", err)
		}
	}
}

// settle replaces one device's filter by a link, unless the endpoint went
// meanwhile.
func (d *Datapath) settle(dev string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.settleMu.Lock()
	wanted := slices.Contains(d.unsettled.devices, dev)
	d.settleMu.Unlock()
	if !wanted {
		return nil
	}
	defer d.forgetUnsettled(dev)
	return d.attachLink(fromPod, dev)
}
