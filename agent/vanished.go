// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"time"

	"github.com/hawser-mesh/hawser/datapath/netdev"
)

// vanishedEvery is how often endpoints are compared with their devices although
// nothing said that one is gone.
const vanishedEvery = 30 * time.Second

// keepDevices removes the endpoints whose device is gone, until the context ends:
// a network namespace that ends without a DEL takes the pod's device with it.
func (m *endpoints) keepDevices(ctx context.Context) error {
	tick := time.NewTicker(vanishedEvery)
	defer tick.Stop()
	removed := m.watchDevices(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case index, ok := <-removed:
			if !ok {
				removed = nil // too many at once; until the next tick
				continue
			}
			m.collect(ctx, func(r *record) bool { return r.IfIndex == uint32(index) })
		case <-tick.C:
			if removed == nil {
				removed = m.watchDevices(ctx)
			}
			m.collect(ctx, func(*record) bool { return true })
		}
	}
}

func (m *endpoints) watchDevices(ctx context.Context) <-chan int {
	removed, err := netdev.WatchRemoved(ctx)
	if err != nil {
		m.log.Warn("devices of pods are compared on a timer only", "error", err, "every", vanishedEvery)
	}
	return removed
}

// collect removes those of the chosen endpoints whose device is gone.
func (m *endpoints) collect(ctx context.Context, chosen func(*record) bool) {
	for _, r := range m.snapshot() {
		if !chosen(r) || !m.vanished(r) {
			continue
		}
		if err := m.collectOne(ctx, r.key()); err != nil {
			m.log.Error("remove endpoint without device, trying again", "endpoint", r.ID, "error", err)
		}
	}
}

// vanished reports whether an endpoint had a device and has none any more. One
// that is being created has none yet.
func (m *endpoints) vanished(r *record) bool {
	return r.State != stateCreating && r.IfIndex != 0 && m.gone(r)
}

// collectOne removes an endpoint unless an add or delete of it is running, which
// sees to the device itself: then there is a next time.
func (m *endpoints) collectOne(ctx context.Context, key string) error {
	unlock, busy := m.tryLock(key)
	if busy != nil {
		return nil
	}
	defer unlock()
	r := m.get(key)
	if r == nil || !m.vanished(r) {
		return nil // it was deleted, or added anew
	}
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	m.log.Warn("an endpoint's device is gone, and nobody deleted it: it is removed", "endpoint", r.ID, "workload", r.workload(), "device", r.HostDevice, "address", r.addrs())
	return m.destroy(ctx, r)
}

// deviceGone asks the kernel; what it does not answer is there.
func deviceGone(log *slog.Logger, r *record) bool {
	gone, err := netdev.PodGone(netdev.PodDevice{IfIndex: int(r.IfIndex), PodMAC: r.PodMAC}, r.Netns)
	if err != nil {
		log.Warn("look for an endpoint's device", "endpoint", r.ID, "device", r.HostDevice, "error", err)
	}
	return gone
}
