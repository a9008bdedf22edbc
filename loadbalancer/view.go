// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

// View is a service of the own cluster with all that stands behind it, for
// listings.
type View struct {
	Service *keyspacev1.Service // must not be changed
	// Clusters have backends in it, in whatever state, sorted.
	Clusters []string
	Backends []BackendView
}

// BackendView is one port of one backend.
type BackendView struct {
	Cluster   string
	ClusterID uint32
	Addr      netip.Addr
	Port      uint16
	Protocol  keyspacev1.Protocol
	PortName  string // of the service's port
	Node      string
	Workload  string
	State     keyspacev1.Backend_State
	Age       Age      // of its cluster's records
	Standing  Standing // of its node
}

// StateName is its state in a word, as it is in effect: what its cluster's age
// makes of it, and quarantined on a node that is passed over.
func (b BackendView) StateName() string {
	if b.Standing != Reached && b.rank() != never {
		return StateName(keyspacev1.Backend_STATE_QUARANTINED)
	}
	if b.Age == Expired || b.Age == Stale && b.State == keyspacev1.Backend_STATE_ACTIVE {
		return b.Age.String()
	}
	return StateName(b.State)
}

// StateName is a backend's state in a word: "active".
func StateName(s keyspacev1.Backend_State) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "STATE_"))
}

func (k serviceKey) compare(o serviceKey) int {
	return cmp.Or(strings.Compare(k.namespace, o.namespace), strings.Compare(k.name, o.name))
}

// List are all services of the own cluster, by namespace and name. Unlike the
// published table it sees a change at once.
func (d *Desired) List() []View {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []View
	for _, k := range d.names() {
		out = append(out, d.view(d.entries[k]))
	}
	return out
}

// Get is one service of the own cluster.
func (d *Desired) Get(namespace, name string) (View, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, ok := d.entries[serviceKey{namespace, name}]
	if !ok || d.service(e) == nil {
		return View{}, false
	}
	return d.view(e), true
}

// Service is the record of one service of the own cluster, which must not be
// changed.
func (d *Desired) Service(namespace, name string) (*keyspacev1.Service, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, ok := d.entries[serviceKey{namespace, name}]
	if !ok {
		return nil, false
	}
	s := d.service(e)
	return s, s != nil
}

func (d *Desired) view(e *entry) View {
	v := View{Service: d.service(e)}
	v.Backends = d.backends(e, v.Service)
	for _, b := range v.Backends {
		if !slices.Contains(v.Clusters, b.Cluster) {
			v.Clusters = append(v.Clusters, b.Cluster)
		}
	}
	slices.Sort(v.Clusters)
	return v
}

// backends are all backends of our service, sorted by cluster, address and
// port, each once: a backend in two slices counts in its better state.
func (d *Desired) backends(e *entry, ours *keyspacev1.Service) []BackendView {
	var out []BackendView
	for k, slice := range e.slices {
		id := d.clusters[k.Cluster]
		if id == 0 || !d.serves(e, ours, k.Source) {
			continue
		}
		for _, b := range slice.GetBackends() {
			standing := d.passed[nodeKey{k.Cluster, b.GetNode()}]
			for _, v := range portsOf(k.Cluster, id, d.ages[k.Cluster], b) {
				v.Standing = standing
				out = append(out, v)
			}
		}
	}
	slices.SortFunc(out, func(a, b BackendView) int {
		return cmp.Or(a.compare(b), cmp.Compare(a.rank(), b.rank()), cmp.Compare(a.State, b.State),
			strings.Compare(a.Node, b.Node), strings.Compare(a.Workload, b.Workload))
	})
	return slices.CompactFunc(out, func(a, b BackendView) bool { return a.compare(b) == 0 })
}

func (b BackendView) compare(o BackendView) int {
	return cmp.Or(cmp.Compare(b.ClusterID, o.ClusterID), strings.Compare(b.Cluster, o.Cluster),
		b.Addr.Compare(o.Addr), cmp.Compare(b.Port, o.Port), cmp.Compare(b.Protocol, o.Protocol),
		strings.Compare(b.PortName, o.PortName))
}

// portsOf is a backend by port; addresses and ports that cannot be a backend's
// are left out.
func portsOf(cluster string, id uint32, age Age, b *keyspacev1.Backend) []BackendView {
	addr, err := netip.ParseAddr(b.GetIp())
	if err != nil || addr.Is4In6() || addr.Zone() != "" || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() {
		return nil
	}
	var out []BackendView
	for _, p := range b.GetPorts() {
		if p.GetPort() == 0 || p.GetPort() > 65535 {
			continue
		}
		out = append(out, BackendView{
			Cluster: cluster, ClusterID: id, Addr: addr, Port: uint16(p.GetPort()), Protocol: p.GetProtocol(),
			PortName: p.GetName(), Node: b.GetNode(), Workload: b.GetWorkload(), State: b.GetState(), Age: age,
		})
	}
	return out
}
