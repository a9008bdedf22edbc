// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/identity"
)

// retryRestore is the pause between attempts to bring endpoints back.
const retryRestore = time.Second

// lostPrefix starts the container id of an endpoint whose record was lost: the
// runtime's id is not known any more, the host's device is.
const lostPrefix = "lost:"

// restore takes over the endpoints of an earlier process: those with a record,
// and those that the kernel has without one (the state directory was lost). What
// was not finished, or whose device is gone, is left to resume to undo; the
// others keep their pinned datapath.
func (m *endpoints) restore(pinned map[maps.IPKey]maps.Endpoint) {
	records, err := m.store.load()
	if err != nil {
		m.log.Error("some endpoint records cannot be read; they are set aside", "error", err)
	}
	known := map[string]bool{}
	for _, r := range records {
		known[r.HostDevice] = true
		m.byKey[r.key()] = r
		m.adopt(r)
	}
	for _, row := range pinned {
		r, ok := lostRecord(row, pinned)
		if !ok || known[r.HostDevice] {
			continue
		}
		known[r.HostDevice] = true
		m.byKey[r.key()] = r
		m.adopt(r)
		m.log.Warn("an endpoint has no record: was the state directory lost? its traffic goes on",
			"endpoint", r.ID, "address", r.Addr, "device", r.HostDevice)
	}
}

// adopt decides whether a record's endpoint is still there.
func (m *endpoints) adopt(r *record) {
	finished := r.State != stateCreating && r.State != stateDeleting
	r.State = stateDeleting
	if r.Addr6.IsValid() && m.pool.v6 == nil {
		m.log.Warn("endpoint loses its IPv6 address: this node has no IPv6 range any more", "endpoint", r.ID, "workload", r.workload(), "address", r.Addr6)
		r.Addr6 = netip.Addr{}
	}
	if err := m.pool.claim(r); err != nil {
		m.log.Error("restore endpoint", "endpoint", r.ID, "workload", r.workload(), "error", err)
		return
	}
	dev, err := netdev.Lookup(r.HostDevice)
	if !finished || err != nil || uint32(dev.IfIndex) != r.IfIndex {
		return
	}
	r.HostMAC = dev.MAC // somebody may have changed it
	r.State = stateRestoring
	m.log.Info("adopt endpoint", "endpoint", r.ID, "workload", r.workload(), "address", r.addrs())
}

// dropStale takes endpoints out of the adopted maps whose devices are gone: pins
// may outlive a network namespace, and in a new one others have their indexes. The
// flows of pods go with them, also of those that ended before and left flows that the
// last process had no time to collect.
func (a *Agent) dropStale() error {
	store, err := openRecords(a.cfg.StateDir)
	if err != nil {
		return err
	}
	records, err := store.load()
	if err != nil {
		a.log.Error("some endpoint records cannot be read; they are set aside", "error", err)
	}
	names := make(map[uint32]string, len(records))
	for _, r := range records {
		names[r.IfIndex] = r.HostDevice
	}
	stale, err := a.reconciler.DropEndpoints(func(e maps.Endpoint) bool {
		return !netdev.Stands(int(e.IfIndex), e.HostMAC, names[e.IfIndex])
	})
	if err != nil {
		return fmt.Errorf("drop endpoints whose devices are gone: %w", err)
	}
	if len(stale) == 0 {
		return nil
	}
	stay := map[netip.Addr]bool{}
	if err := maps.DumpBatches(a.dp.Maps().Endpoints, func(k maps.IPKey, _ maps.Endpoint) { stay[k.Addr.Netip()] = true }); err != nil {
		return fmt.Errorf("read the endpoints that stay: %w", err)
	}
	flows, err := a.dp.ForgetFlows(func(addr netip.Addr) bool {
		return slices.Contains(stale, addr) || !stay[addr] && a.cfg.isPodAddress(addr)
	})
	if err != nil {
		return fmt.Errorf("drop the flows of endpoints whose devices are gone: %w", err)
	}
	a.log.Warn("the maps had endpoints whose devices are gone; they are dropped", "addresses", stale, "flows", flows)
	return nil
}

// adoptedPathMTUs are the MTUs of the ways to other nodes that the adopted map nodes
// has, in bytes, by tunnel addresses: what the programs went by until now.
func adoptedPathMTUs(nodes *ebpf.Map) (map[netip.Addr]uint32, error) {
	out := map[netip.Addr]uint32{}
	err := maps.DumpBatches(nodes, func(_ uint32, n maps.Node) {
		if a := n.Addr.Netip(); n.MTU != 0 && a.IsValid() {
			out[a] = n.MTU
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read the adopted nodes: %w", err)
	}
	return out, nil
}

// lostRecord makes a record of what the kernel has of an endpoint, by its rows in
// pinned; ok is false when its device is gone too.
func lostRecord(row maps.Endpoint, pinned map[maps.IPKey]maps.Endpoint) (r *record, ok bool) {
	dev, err := net.InterfaceByIndex(int(row.IfIndex))
	if err != nil || row.ID == 0 {
		return nil, false
	}
	var addr, addr6 netip.Addr
	for k, v := range pinned {
		switch a := k.Addr.Netip(); {
		case v.IfIndex != row.IfIndex:
		case a.Is4():
			addr = a
		default:
			addr6 = a
		}
	}
	return &record{
		ID: row.ID, ContainerID: lostPrefix + dev.Name, IfName: "eth0", Namespace: "lost", Name: dev.Name,
		Addr: addr, Addr6: addr6, State: stateRestoring, Identity: identity.Number(row.Identity), RuleSet: row.RuleSet,
		HostDevice: dev.Name, IfIndex: row.IfIndex, HostMAC: row.HostMAC, PodMAC: row.PodMAC, CreatedAt: time.Now().UnixNano(),
	}, true
}

// lost is the endpoint without a record that has a device, nil when there is
// none.
func (m *endpoints) lost(device string) *record {
	return m.get(lostPrefix + device + "/eth0")
}

// identify gives an endpoint without a record its name and labels again, from
// what the keyspace says of its address and identity.
func (m *endpoints) identify(r *record) error {
	if len(r.Labels) > 0 {
		return nil
	}
	namespace, name, ls := m.whois(r.Addr, r.Identity)
	if len(ls) == 0 {
		return fmt.Errorf("the labels of identity %d are not known", r.Identity)
	}
	if name != "" {
		r.Namespace, r.Name = namespace, name
	}
	r.Labels, r.IdentityLabels = ls, ls
	return m.keep(r)
}

// resume finishes the restore: what was not finished is undone at once, the
// others get identity, address and rules as soon as the keyspace is read. One
// that cannot be brought back does not keep the others waiting. It returns when
// all are back or the context ends.
func (m *endpoints) resume(ctx context.Context) {
	for _, r := range m.snapshot() {
		if r.State == stateDeleting {
			m.log.Info("undo unfinished endpoint", "endpoint", r.ID, "workload", r.workload())
			if err := m.undo(ctx, r.key()); err != nil {
				m.log.Error("undo unfinished endpoint", "endpoint", r.ID, "error", err)
			}
		}
	}
	select {
	case <-m.ready:
	case <-ctx.Done():
		return
	}
	for left := 1; left > 0 && ctx.Err() == nil; {
		left = 0
		for _, r := range m.snapshot() {
			if r.State != stateRestoring {
				continue
			}
			if err := m.readopt(ctx, r.key()); err != nil {
				left++
				m.log.Warn("restore endpoint, trying again", "endpoint", r.ID, "workload", r.workload(), "error", err)
			}
		}
		if left > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(retryRestore):
			}
		}
	}
}

func (m *endpoints) undo(ctx context.Context, key string) error {
	unlock, err := m.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	r := m.get(key)
	if r == nil || r.State != stateDeleting {
		return nil
	}
	return m.destroy(ctx, r)
}

func (m *endpoints) readopt(ctx context.Context, key string) error {
	unlock, err := m.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	r := m.get(key)
	if r == nil || r.State != stateRestoring {
		return nil
	}
	if err := m.identify(r); err != nil {
		return err
	}
	if err := m.enlist(ctx, r); err != nil {
		return err
	}
	r.State = stateReady
	return m.keep(r)
}
