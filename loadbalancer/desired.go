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
	ages     map[string]Age // of clusters whose data is not fresh
	// claims are the services that have each frontend: one, unless two were
	// given the same address.
	claims map[datapath.FrontendKey]map[serviceKey]struct{}
	dirty  map[serviceKey]struct{}
	// passed are the nodes whose backends are to be passed over.
	passed map[nodeKey]Standing
}

// NewDesired makes an empty Desired for a cluster.
func NewDesired(ownCluster string) (*Desired, error) {
	if ownCluster == "" {
		return nil, errors.New("load balancer: own cluster's name is required")
	}
	return &Desired{
		own: ownCluster, entries: map[serviceKey]*entry{}, clusters: map[string]uint32{}, ages: map[string]Age{},
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
	d.touchCluster(name)
}

// touchCluster marks all services with backends of a cluster.
func (d *Desired) touchCluster(name string) {
	for k, e := range d.entries {
		for s := range e.slices {
			if s.Cluster == name {
				d.dirty[k] = struct{}{}
				break
			}
		}
	}
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
		same := ofFamily(all, addr)
		for _, p := range s.GetPorts() {
			key := datapath.FrontendKey{Addr: addr, Port: uint16(p.GetPort()), Protocol: uint8(p.GetProtocol())}
			taken := taking(same, p)
			rows[key] = datapath.Frontend{Service: s.GetId(), Backends: taken, Affinity: s.GetSessionAffinitySeconds(), Keeping: keeping(same, p, taken)}
		}
	}
	return rows
}

// names are the keys of all entries with an object of ours, sorted.
func (d *Desired) names() []serviceKey {
	keys := slices.DeleteFunc(slices.Collect(maps.Keys(d.entries)), func(k serviceKey) bool {
		return d.service(d.entries[k]) == nil
	})
	slices.SortFunc(keys, serviceKey.compare)
	return keys
}
