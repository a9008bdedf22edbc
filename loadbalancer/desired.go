// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/internal/table"
)

// Source is where a record was read: state/<cluster>/, or local/<cluster>/ for
// what the own cluster does not share.
type Source struct {
	Cluster string
	Local   bool
}

type serviceKey struct{ namespace, name string }

type sliceKey struct {
	Source
	name string
}

// entry is all that is known about the services of one name.
type entry struct {
	services map[Source]*keyspacev1.Service
	slices   map[sliceKey]*keyspacev1.BackendSlice
	rows     map[datapath.FrontendKey]datapath.Frontend // as last published
}

// Desired merges the services and backends of all clusters into the frontends
// of this one. It is safe for concurrent use; methods block on its mutex only.
// Records handed in must not change afterwards.
type Desired struct {
	own string

	mu       sync.Mutex
	entries  map[serviceKey]*entry
	clusters map[string]uint32
	// claims are the services that have each frontend: one, unless two were
	// given the same address.
	claims map[datapath.FrontendKey]map[serviceKey]struct{}
	dirty  map[serviceKey]struct{}
	// passed are the nodes whose backends are to be passed over.
	passed map[nodeKey]Standing
}

type nodeKey struct{ cluster, node string }

// NewDesired makes an empty Desired for a cluster.
func NewDesired(ownCluster string) (*Desired, error) {
	if ownCluster == "" {
		return nil, errors.New("load balancer: own cluster's name is required")
	}
	return &Desired{
		own: ownCluster, entries: map[serviceKey]*entry{}, clusters: map[string]uint32{},
		claims: map[datapath.FrontendKey]map[serviceKey]struct{}{}, dirty: map[serviceKey]struct{}{}, passed: map[nodeKey]Standing{},
	}, nil
}

// touch is the entry of a name, marked for the next Publish.
func (d *Desired) touch(namespace, name string) *entry {
	k := serviceKey{namespace, name}
	d.dirty[k] = struct{}{}
	e, ok := d.entries[k]
	if !ok {
		e = &entry{services: map[Source]*keyspacev1.Service{}, slices: map[sliceKey]*keyspacev1.BackendSlice{}}
		d.entries[k] = e
	}
	return e
}

// UpsertService takes a Service record.
func (d *Desired) UpsertService(from Source, s *keyspacev1.Service) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.touch(s.GetNamespace(), s.GetName()).services[from] = s
}

// DeleteService withdraws UpsertService.
func (d *Desired) DeleteService(from Source, namespace, name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.touch(namespace, name).services, from)
}

// UpsertSlice takes a BackendSlice record.
func (d *Desired) UpsertSlice(from Source, s *keyspacev1.BackendSlice) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.touch(s.GetNamespace(), s.GetService()).slices[sliceKey{from, s.GetName()}] = s
}

// DeleteSlice withdraws UpsertSlice.
func (d *Desired) DeleteSlice(from Source, namespace, service, slice string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.touch(namespace, service).slices, sliceKey{from, slice})
}

// SetCluster tells a cluster's number, which stands in every backend. Backends
// of a cluster without a number are not used.
func (d *Desired) SetCluster(name string, id uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.clusters[name] == id {
		return
	}
	d.clusters[name] = id
	for k, e := range d.entries {
		for s := range e.slices {
			if s.Cluster == name {
				d.dirty[k] = struct{}{}
				break
			}
		}
	}
}

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

// DeleteCluster forgets a cluster's number.
func (d *Desired) DeleteCluster(name string) { d.SetCluster(name, 0) }

// Publish writes the frontends that changed since the last call into t, and
// reports how many services that concerned. It is for one caller.
func (d *Desired) Publish(t *table.Table[datapath.FrontendKey, datapath.Frontend]) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	keys := map[datapath.FrontendKey]struct{}{}
	for k := range d.dirty {
		e := d.entries[k]
		for f := range e.rows {
			keys[f] = struct{}{}
			if delete(d.claims[f], k); len(d.claims[f]) == 0 {
				delete(d.claims, f)
			}
		}
		e.rows = d.frontends(e)
		for f := range e.rows {
			keys[f] = struct{}{}
			if d.claims[f] == nil {
				d.claims[f] = map[serviceKey]struct{}{}
			}
			d.claims[f][k] = struct{}{}
		}
		if len(e.services) == 0 && len(e.slices) == 0 {
			delete(d.entries, k)
		}
	}
	for f := range keys {
		if row, ok := d.winner(f); ok {
			t.Set(f, row)
		} else {
			t.Delete(f)
		}
	}
	n := len(d.dirty)
	clear(d.dirty)
	return n
}

// winner is the row of a frontend: of two services with one address, the one
// with the lower number.
func (d *Desired) winner(f datapath.FrontendKey) (best datapath.Frontend, ok bool) {
	for k := range d.claims[f] {
		if row := d.entries[k].rows[f]; !ok || row.Service < best.Service {
			best, ok = row, true
		}
	}
	return best, ok
}

// service is the own cluster's object. It is in both subtrees for a moment when
// it begins or ceases to be shared: then the newer one counts.
func (d *Desired) service(e *entry) *keyspacev1.Service {
	public, private := e.services[Source{d.own, false}], e.services[Source{d.own, true}]
	if public == nil || private != nil && private.GetUpdatedAt() > public.GetUpdatedAt() {
		return private
	}
	return public
}

// serves reports whether a cluster's backends belong to our service: our own
// always, a peer's only if our object and theirs are both global.
func (d *Desired) serves(e *entry, ours *keyspacev1.Service, from Source) bool {
	if from.Cluster == d.own {
		return true
	}
	theirs := e.services[from]
	return !from.Local && ours.GetGlobal() && theirs.GetGlobal() && theirs.GetShared()
}

// frontends are the rows of one service: none without an object of ours that
// has been given its number and address.
func (d *Desired) frontends(e *entry) map[datapath.FrontendKey]datapath.Frontend {
	s := d.service(e)
	if s == nil || s.GetId() == 0 {
		return nil
	}
	all := d.backends(e, s)
	rows := map[datapath.FrontendKey]datapath.Frontend{}
	for _, vip := range s.GetVips() {
		addr, err := netip.ParseAddr(vip)
		if err != nil {
			continue
		}
		for _, p := range s.GetPorts() {
			key := datapath.FrontendKey{Addr: addr, Port: uint16(p.GetPort()), Protocol: uint8(p.GetProtocol())}
			taken := taking(all, p)
			rows[key] = datapath.Frontend{Service: s.GetId(), Backends: taken, Keeping: keeping(all, p, taken)}
		}
	}
	return rows
}

// taking are the backends of a port that take new connections: those of the best
// rank that there is one of.
func taking(all []BackendView, p *keyspacev1.ServicePort) []datapath.Backend {
	best, out := never, []datapath.Backend(nil)
	for _, b := range all {
		r := b.rank()
		if r > best || r == never || b.PortName != p.GetName() || b.Protocol != p.GetProtocol() {
			continue
		}
		if r < best {
			best, out = r, nil
		}
		out = append(out, b.row())
	}
	return out
}

// keeping are the backends of a port that keep the flows that they have, and are
// not among those taken.
func keeping(all []BackendView, p *keyspacev1.ServicePort, taken []datapath.Backend) (out []datapath.Backend) {
	for _, b := range all {
		if b.PortName == p.GetName() && b.Protocol == p.GetProtocol() && b.keeps() && !slices.Contains(taken, b.row()) {
			out = append(out, b.row())
		}
	}
	return out
}

func (b BackendView) row() datapath.Backend {
	return datapath.Backend{Addr: b.Addr, Port: b.Port, ClusterID: b.ClusterID}
}

// keeps reports whether a backend that takes no new flows keeps those it has.
// Those of a node that is gone are better told at once: their next packet goes
// to another backend, which resets them.
func (b BackendView) keeps() bool {
	return b.Standing != Gone && b.rank() != never
}

// Ranks of backends. A service is never left without backends because of what
// is only believed of nodes: those that nobody reaches are the last, not gone.
const (
	ready  = iota // active, on a node that is reached
	ending        // terminating, on a node that is reached
	passed        // active, on a node that is not reached
	passedEnding
	never // quarantined or in maintenance: takes none
)

// rank is the one place where backends are compared.
func (b BackendView) rank() int {
	switch {
	case b.State == keyspacev1.Backend_STATE_ACTIVE && b.Standing == Reached:
		return ready
	case b.State == keyspacev1.Backend_STATE_TERMINATING && b.Standing == Reached:
		return ending
	case b.State == keyspacev1.Backend_STATE_ACTIVE:
		return passed
	case b.State == keyspacev1.Backend_STATE_TERMINATING:
		return passedEnding
	}
	return never
}

// names are the keys of all entries with an object of ours, sorted.
func (d *Desired) names() []serviceKey {
	keys := slices.DeleteFunc(slices.Collect(maps.Keys(d.entries)), func(k serviceKey) bool {
		return d.service(d.entries[k]) == nil
	})
	slices.SortFunc(keys, serviceKey.compare)
	return keys
}
