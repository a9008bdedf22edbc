// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/liveness"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/ipcache"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/rangetext"
	"github.com/hawser-mesh/hawser/internal/seldom"
	"github.com/hawser-mesh/hawser/internal/table"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
	"github.com/hawser-mesh/hawser/loadbalancer"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

// view is what this node knows of the mesh: it turns batches of keys into rows
// of the datapath's tables. Both readers (state/ and local/) feed it.
type view struct {
	own         string // cluster
	log         *slog.Logger
	space       identity.Space
	tables      *datapath.Tables
	engine      *policy.Engine
	ips         *ipcache.Cache
	lb          *loadbalancer.Desired
	names       *names
	alive       *liveness.Table
	propagation *propagation
	// podRoutes are the prefixes, of pods and of the own services, that the host
	// reaches through the datapath.
	podRoutes *table.Table[netip.Prefix, struct{}]
	// identityLost wakes when an identity of the own cluster is deleted.
	identityLost chan struct{}
	// services wakes the writer of this node's slices.
	services *table.Table[serviceName, *keyspacev1.Service]

	told seldom.Gate // of what is not usable

	mu         sync.Mutex
	clusters   map[string]uint32
	verdicts   verdicts
	identities map[identity.Number]knownIdentity
	known      map[identity.Number]datapath.Identity // to be published, after their entries in rule sets
	ports      *namedPorts
	rollout    *rollout
	backing    *backing
	vteps      map[netip.Prefix]map[string]struct{} // prefix → clusters that claim it
	// serviceRoutes are those of podRoutes that are for services, ownRoutes those
	// for the pods of this node.
	serviceRoutes []netip.Prefix
	ownRoutes     []netip.Prefix
	policies      map[string]string // key → problem of an object that cannot be enforced
	seen          map[string]int64  // kind → newest revision
	moved         bool              // nodes or backends have changed
}

type knownIdentity struct {
	cluster string
	labels  labels.Set
}

type serviceName struct{ namespace, name string }

func newView(self liveness.NodeID, space identity.Space, log *slog.Logger, tables *datapath.Tables, engine *policy.Engine, ips *ipcache.Cache, lb *loadbalancer.Desired, names *names) *view {
	return &view{
		own: self.Cluster, log: log, alive: liveness.NewTable(self), propagation: newPropagation(tables), space: space, tables: tables, engine: engine, ips: ips, lb: lb, names: names,
		podRoutes:    table.New[netip.Prefix]("routes", func(struct{}, struct{}) bool { return true }),
		services:     table.New[serviceName]("services", func(a, b *keyspacev1.Service) bool { return a == b }),
		identityLost: make(chan struct{}, 1),
		clusters:     map[string]uint32{},
		verdicts:     verdicts{expired: map[string]bool{}},
		identities:   map[identity.Number]knownIdentity{},
		known:        map[identity.Number]datapath.Identity{},
		ports:        newNamedPorts(),
		rollout:      newRollout(),
		backing:      newBacking(),
		vteps:        map[netip.Prefix]map[string]struct{}{},
		policies:     map[string]string{},
		seen:         map[string]int64{},
		told:         seldom.Gate{Window: refusalsLogged, Most: refusalsTold},
	}
}

// apply takes a batch of either reader.
func (v *view) apply(b store.Batch) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s, sampled := v.propagation.begin(b)
	for _, c := range b.Changes {
		if err := v.change(c); err != nil {
			if untold, ok := v.told.Pass(); ok {
				v.log.Warn("record not usable", "key", c.KV.Key, "error", err, "untold_before", untold)
			}
		}
		if rev := c.KV.ModRevision; rev > 0 {
			v.seen[string(c.Key.Kind)] = max(v.seen[string(c.Key.Kind)], rev)
		}
	}
	v.publish()
	if sampled {
		v.propagation.published(s)
	}
}

// flush publishes what this node's own parts changed.
func (v *view) flush() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.publish()
}

// publish brings what changed into the tables, in the order in which the kernel
// needs it.
func (v *view) publish() {
	v.backing.tell(v.engine, v.lb, v.ips)
	v.engine.Publish(v.tables.RuleSets)
	for n, row := range v.known {
		v.tables.Identities.Set(n, row)
	}
	clear(v.known)
	for _, c := range v.engine.CIDRChanges() {
		switch {
		case c.Block && c.Gone:
			v.ips.DeleteBlock(c.Prefix)
		case c.Block:
			v.ips.SetBlock(c.Prefix, c.Number)
		case c.Gone:
			v.ips.DeleteCIDR(c.Prefix)
		default:
			v.ips.SetCIDR(c.Prefix, c.Number)
		}
	}
	v.ips.Publish(v.tables.IPCache, v.tables.Nodes)
	v.rollout.note(v.tables.RuleSets.Revision(), v.tables.IPCache.Revision())
	var nodes []loadbalancer.Node
	for id, why := range v.alive.Changes() {
		nodes = append(nodes, loadbalancer.Node{Cluster: id.Cluster, Name: id.Node, Standing: standing(why)})
		v.log.Info("backends of a node", "of", id, "chosen", why == "", "why", why)
	}
	v.lb.SetNodes(nodes)
	v.lb.Publish(v.tables.Frontends)
}

// change takes one key. Kinds that mean nothing to an agent are passed over.
func (v *view) change(c store.Change) error {
	v.liveness(c)
	switch c.Key.Kind {
	case kvstore.KindCluster:
		return v.cluster(c)
	case kvstore.KindIdentity:
		return v.identity(c)
	case kvstore.KindNode:
		v.backing.all = true // a node may be a backend
		if c.Deleted {
			v.ips.DeleteNode(c.Key.Cluster, c.Key.Names[0])
			return nil
		}
		return v.ips.UpsertNode(c.Key.Cluster, c.Record.(*keyspacev1.Node))
	case kvstore.KindIP:
		return v.ip(c)
	case kvstore.KindVTEP:
		return v.vtep(c)
	case kvstore.KindService:
		return v.service(c)
	case kvstore.KindSlice:
		v.backing.service(c.Key.Names[0], c.Key.Names[1])
		if c.Deleted {
			v.lb.DeleteSlice(source(c.Key), c.Key.Names[0], c.Key.Names[1], c.Key.Names[2])
			return nil
		}
		v.lb.UpsertSlice(source(c.Key), c.Record.(*keyspacev1.BackendSlice))
	case kvstore.KindPolicy:
		return v.policy(c)
	case kvstore.KindPeerView:
		v.peer(c)
	}
	return nil
}

func (v *view) cluster(c store.Change) error {
	v.backing.all = true
	if c.Deleted {
		delete(v.clusters, c.Key.Cluster)
		v.ips.DeleteCluster(c.Key.Cluster)
		v.names.setRanges(c.Key.Cluster, nil)
		return nil
	}
	r := c.Record.(*keyspacev1.Cluster)
	v.clusters[c.Key.Cluster] = r.GetId()
	v.ips.SetCluster(c.Key.Cluster, r.GetId())
	v.lb.SetCluster(c.Key.Cluster, r.GetId())
	all := rangetext.Parse(slices.Concat(r.GetPodCidrs(), r.GetServiceCidrs()))
	v.ips.SetRanges(c.Key.Cluster, all)
	v.names.setRanges(c.Key.Cluster, all)
	if c.Key.Cluster == v.own {
		v.routeServices(r.GetServiceCidrs())
		v.engine.SetKubeAPIServers(rangetext.Parse(r.GetKubeApiservers()))
	}
	return nil
}

// routeServices lets the host reach its cluster's service addresses. Validation
// has accepted the prefixes.
func (v *view) routeServices(cidrs []string) {
	want := rangetext.Parse(cidrs)
	before := v.serviceRoutes
	v.serviceRoutes = want
	for _, p := range before {
		v.unroute(p)
	}
	for _, p := range want {
		v.podRoutes.Set(p, struct{}{})
	}
}

// routeOwn has the host reach this node's pods, whatever others say of the
// prefix.
func (v *view) routeOwn(prefixes ...netip.Prefix) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ownRoutes = prefixes
	for _, p := range prefixes {
		v.podRoutes.Set(p, struct{}{})
	}
}

// unroute takes a prefix's route away unless something else needs it.
func (v *view) unroute(p netip.Prefix) {
	if !slices.Contains(v.ownRoutes, p) && len(v.vteps[p]) == 0 && !slices.Contains(v.serviceRoutes, p) {
		v.podRoutes.Delete(p)
	}
}

func (v *view) identity(c store.Change) error {
	if c.Deleted {
		n, err := parseNumber(c.Key.Names[0])
		if err != nil {
			return err
		}
		delete(v.identities, n)
		v.engine.DeleteIdentity(n)
		v.unknow(n)
		if c.Key.Cluster == v.own {
			v.wakeIdentities()
		}
		return nil
	}
	r := c.Record.(*keyspacev1.Identity)
	n := identity.Number(r.GetNumber())
	ls, err := labels.ParseSet(r.GetLabels(), labels.Any)
	if err != nil {
		return err
	}
	v.identities[n] = knownIdentity{c.Key.Cluster, ls}
	v.judge(n, v.identities[n])
	return nil
}

// wakeIdentities has the identities in use confirmed.
func (v *view) wakeIdentities() {
	select {
	case v.identityLost <- struct{}{}:
	default:
	}
}

func (v *view) ip(c store.Change) error {
	p, err := netip.ParsePrefix(c.Key.Names[0])
	if err == nil {
		v.backing.prefix(p)
	}
	if c.Deleted {
		v.setNamedPorts(c.Key, p, nil)
		v.names.setAddress(c.Key.Cluster, p, nil)
		v.ips.DeleteIP(c.Key.Cluster, p)
		return err
	}
	r := c.Record.(*keyspacev1.IPEntry)
	v.setNamedPorts(c.Key, p, r)
	v.names.setAddress(c.Key.Cluster, p, r)
	return v.ips.UpsertIP(c.Key.Cluster, r)
}

// setNamedPorts takes what an address's record says of ports; nil: it is gone.
func (v *view) setNamedPorts(key kvstore.Key, at netip.Prefix, r *keyspacev1.IPEntry) {
	var ports []policy.NamedPort
	if r != nil {
		ports = []policy.NamedPort{} // also a workload without names is one
	}
	for _, p := range r.GetNamedPorts() {
		ports = append(ports, policy.NamedPort{Name: p.GetName(), Protocol: uint8(p.GetProtocol()), Port: uint16(p.GetPort())})
	}
	for _, changed := range v.ports.set(key.String(), identity.Number(r.GetIdentity()), ports) {
		v.engine.SetNamedPorts(changed, v.ports.of(changed))
	}
	if at.IsSingleIP() {
		v.engine.SetAddressPorts(key.Cluster, at.Addr(), ports)
	}
}

func (v *view) vtep(c store.Change) error {
	p, err := netip.ParsePrefix(c.Key.Names[0])
	if err != nil {
		return err
	}
	if c.Deleted {
		v.ips.DeleteVTEP(c.Key.Cluster, p)
		delete(v.vteps[p], c.Key.Cluster)
		if len(v.vteps[p]) == 0 {
			delete(v.vteps, p)
			v.unroute(p)
		}
		return nil
	}
	if err := v.ips.UpsertVTEP(c.Key.Cluster, c.Record.(*keyspacev1.VTEP)); err != nil {
		return err
	}
	if v.vteps[p] == nil {
		v.vteps[p] = map[string]struct{}{}
	}
	v.vteps[p][c.Key.Cluster] = struct{}{}
	v.podRoutes.Set(p, struct{}{})
	return nil
}

func (v *view) service(c store.Change) error {
	name := serviceName{c.Key.Names[0], c.Key.Names[1]}
	v.backing.service(name.namespace, name.name)
	if c.Deleted {
		v.lb.DeleteService(source(c.Key), name.namespace, name.name)
		// The service may have moved to the other subtree.
		if s, ok := v.services.Get(name); ok && c.Key.Cluster == v.own && s.GetShared() == (c.Key.Subtree == kvstore.State) {
			v.services.Delete(name)
			v.names.setService(name, nil)
		}
		return nil
	}
	s := c.Record.(*keyspacev1.Service)
	v.lb.UpsertService(source(c.Key), s)
	if c.Key.Cluster == v.own {
		v.services.Set(name, s)
		v.names.setService(name, s)
	}
	return nil
}

// source is where a service or slice was published.
func source(k kvstore.Key) loadbalancer.Source {
	return loadbalancer.Source{Cluster: k.Cluster, Local: k.Subtree == kvstore.Local}
}

// policy takes a policy object. One that cannot be read is a problem of the
// cluster that status shows; the objects of before stay enforced.
func (v *view) policy(c store.Change) error {
	namespace, name := c.Key.Names[0], c.Key.Names[1]
	id := namespace + "/" + name
	v.rollout.changed = true
	if c.Deleted {
		delete(v.policies, id)
		delete(v.rollout.objects, id)
		v.engine.DeleteObject(namespace, name)
		return nil
	}
	objects, err := api.Parse([]byte(c.Record.(*keyspacev1.PolicyObject).GetSource()))
	if err == nil && (len(objects) != 1 || objects[0].ID() != id) {
		err = errors.New("its text is of another object")
	}
	if err == nil {
		err = policy.Check(objects[0])
	}
	if err != nil {
		v.policies[id] = err.Error()
		return err
	}
	delete(v.policies, id)
	v.rollout.objects[id] = c.Record.(*keyspacev1.PolicyObject).GetRevision()
	v.engine.UpsertObject(objects[0])
	return nil
}

// listed notes that all of a kind up to rev is known, and nothing beyond: the
// listing may be of another history.
func (v *view) listed(k kvstore.Kind, rev int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.seen[string(k)] = rev
}

// seenRevisions is the newest revision applied of each kind.
func (v *view) seenRevisions() map[string]int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make(map[string]int64, len(v.seen))
	for k, r := range v.seen {
		out[k] = r
	}
	return out
}
