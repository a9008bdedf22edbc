// SPDX-License-Identifier: Apache-2.0

package loadbalancer

// nodeKey is a node of a cluster.
type nodeKey struct{ cluster, node string }

// Standing is how a node's backends are to be treated.
type Standing uint8

// Standings of nodes. Whatever it is, a service whose backends are all passed
// over has them all.
const (
	Reached Standing = iota // as any other
	Away                    // passed over; flows that they have go on
	Gone                    // passed over; flows that they have are over
)

// Node is a node with its standing.
type Node struct {
	Cluster, Name string
	Standing      Standing
}

// SetNodes tells how these nodes' backends are to be treated from now on; all
// others stay as they are. It looks at every backend once.
func (d *Desired) SetNodes(nodes []Node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed := map[nodeKey]struct{}{}
	for _, n := range nodes {
		k := nodeKey{n.Cluster, n.Name}
		if d.passed[k] == n.Standing {
			continue
		}
		if changed[k] = struct{}{}; n.Standing == Reached {
			delete(d.passed, k)
		} else {
			d.passed[k] = n.Standing
		}
	}
	if len(changed) == 0 {
		return
	}
	d.eachBackend(func(k serviceKey, n nodeKey) {
		if _, ok := changed[n]; ok {
			d.dirty[k] = struct{}{}
		}
	})
}

// eachBackend calls fn for every backend of every cluster.
func (d *Desired) eachBackend(fn func(serviceKey, nodeKey)) {
	for k, e := range d.entries {
		for s, slice := range e.slices {
			for _, b := range slice.GetBackends() {
				fn(k, nodeKey{s.Cluster, b.GetNode()})
			}
		}
	}
}

// Serving are the nodes with backends of services that this cluster has, by
// cluster and name.
func (d *Desired) Serving() map[[2]string]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[[2]string]bool{}
	d.eachBackend(func(k serviceKey, n nodeKey) {
		if d.service(d.entries[k]) != nil {
			out[[2]string{n.cluster, n.node}] = true
		}
	})
	return out
}
