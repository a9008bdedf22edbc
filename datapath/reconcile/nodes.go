// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/objects"
	"github.com/hawser-mesh/hawser/internal/table"
)

// nodeIDs numbers tunnel addresses. A number is kept for the life of the
// process, also when its node goes: conntrack and ipcache may still name it.
// After a restart numbers come from the pinned maps.
type nodeIDs struct {
	ids  map[netip.Addr]uint32
	next uint32
	max  uint32
}

func newNodeIDs(kernel *objects.HawserMaps) (*nodeIDs, error) {
	n := &nodeIDs{ids: map[netip.Addr]uint32{}, next: 1, max: kernel.Nodes.MaxEntries()}
	known, err := maps.Dump[maps.Addr, uint32](kernel.NodeAddrs)
	if err != nil {
		return nil, err
	}
	for addr, id := range known {
		n.ids[addr.Netip()] = id
		n.next = max(n.next, id+1)
	}
	// Numbers that only ipcache entries name are not given to someone else.
	err = maps.DumpBatches(kernel.Ipcache, func(_ maps.IPKey, e maps.IPEntry) {
		n.next = max(n.next, e.Node+1)
	})
	return n, err
}

func (n *nodeIDs) of(a netip.Addr) (uint32, error) {
	if !a.IsValid() {
		return 0, nil
	}
	if id, ok := n.ids[a]; ok {
		return id, nil
	}
	if n.next >= n.max {
		return 0, fmt.Errorf("number node %s: the map nodes is full, with %d entries, those of nodes that are gone included: give the agent larger maps (--map-sizes default)", a, n.max)
	}
	n.ids[a] = n.next
	n.next++
	return n.ids[a], nil
}

type nodes struct {
	feed[netip.Addr, datapath.Node]
	ids   *nodeIDs
	byID  *slots[maps.Node]
	addrs *mirror[maps.Addr, uint32]
	vteps *mirror[uint32, maps.VTEP] // of those that are external
}

func newNodes(kernel *objects.HawserMaps, t *table.Table[netip.Addr, datapath.Node], ids *nodeIDs) (*nodes, error) {
	byID, err1 := newSlots[maps.Node]("nodes", kernel.Nodes)
	addrs, err2 := newMirror[maps.Addr, uint32]("node_addrs", kernel.NodeAddrs)
	vteps, err3 := newMirror[uint32, maps.VTEP]("vteps", kernel.Vteps)
	return &nodes{feed: newFeed(t), ids: ids, byID: byID, addrs: addrs, vteps: vteps}, errors.Join(err1, err2, err3)
}

func (n *nodes) sync() (uint64, error) {
	return n.each(func(_ netip.Addr, _ *datapath.Node, row datapath.Node) error {
		id, err := n.ids.of(row.Tunnel)
		if err != nil {
			return err
		}
		addr := maps.AddrFrom(row.Tunnel)
		if err := n.external(id, row); err != nil {
			return err
		}
		_, err1 := n.byID.set(id, maps.Node{Addr: addr, Cluster: row.ClusterID, MTU: row.MTU})
		_, err2 := n.addrs.set(addr, id)
		return errors.Join(err1, err2)
	}, func(_ netip.Addr, old datapath.Node) error {
		// The sender is disbelieved first; its number stays reserved.
		_, err1 := n.addrs.del(maps.AddrFrom(old.Tunnel))
		_, err2 := n.byID.del(n.ids.ids[old.Tunnel])
		_, err3 := n.vteps.del(n.ids.ids[old.Tunnel])
		return errors.Join(err1, err2, err3)
	})
}

// external writes what the headers of an external endpoint are. Without it
// nothing is sent to one, and nothing is believed from it.
func (n *nodes) external(id uint32, row datapath.Node) error {
	if row.ClusterID != datapath.ExternalCluster {
		_, err := n.vteps.del(id)
		return err
	}
	_, err := n.vteps.set(id, maps.VTEP{VNI: row.VNI, MAC: row.MAC})
	return err
}

func (n *nodes) repair(prune bool) error {
	return errors.Join(n.byID.repair(prune), n.addrs.repair(prune, func(maps.Addr) {}), n.vteps.repair(prune, func(uint32) {}))
}
