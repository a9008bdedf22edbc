// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	gomaps "maps"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/hawser-mesh/hawser/agent/dns"
	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/clustermesh/enrol"
	"github.com/hawser-mesh/hawser/clustermesh/liveness"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/datapath/reconcile"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/allocator"
	"github.com/hawser-mesh/hawser/identity/ipcache"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/rest"
	"github.com/hawser-mesh/hawser/internal/unixsocket"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
	"github.com/hawser-mesh/hawser/kvstore/store"
	"github.com/hawser-mesh/hawser/loadbalancer"
	"github.com/hawser-mesh/hawser/observe"
	"github.com/hawser-mesh/hawser/observe/metrics"
	"github.com/hawser-mesh/hawser/policy"
)

// Agent is the agent of one node.
type Agent struct {
	cfg     Config
	log     *slog.Logger
	started time.Time
	space   identity.Space
	filter  labels.Filter // of the labels that make an identity
	mtu     int           // of the underlay, bytes
	// enrolled is false when the certificate was issued by hand, and does not
	// renew itself.
	enrolled bool

	dp         *loader.Datapath
	tables     *datapath.Tables
	reconciler *reconcile.Reconciler

	kv           *etcd.Client
	state, local *store.Reader
	writer       *store.Writer
	presence     *store.Presence
	ids          *numbers
	index        *allocator.Index

	view       *view
	marks      *markers
	publisher  *publisher
	endpoints  *endpoints
	pinned     map[maps.IPKey]maps.Endpoint // endpoints in the kernel at start
	unknown    *unknowns
	grants     *grants
	unreadable *unreadable
	routeless  routeless
	outside    *outside
	watchman   *watchman
	tunnel     tunnelMake
	host       hostPair
	hub        observe.Hub
	watching   sync.Mutex  // serialises watch
	dns        *dns.Server // nil when it is off
	trust      *trust
	timers     *timers

	ready    chan struct{} // own policies and identities are known
	complete chan struct{} // everything of every cluster is known
	stopping chan struct{}
}

// Run starts an agent in the current network namespace and blocks until the
// context ends or a part of it fails. Programs, maps and routes stay: traffic
// goes on without an agent.
func Run(ctx context.Context, cfg Config) error {
	enrolment, err := cfg.complete(ctx)
	if err != nil {
		return err
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	a := &Agent{
		enrolled: enrolment != nil,
		cfg:      cfg, log: cfg.Log.With("node", cfg.Node), started: time.Now(), tables: datapath.NewTables(),
		ready: make(chan struct{}), complete: make(chan struct{}), stopping: make(chan struct{}), timers: newTimers(),
		host: hostPair{wake: make(chan struct{}, 1)},
	}
	var apiServers []string
	if enrolment != nil {
		apiServers = enrolment.APIEndpoints
	}
	a.outside = newOutside(a.cfg.EtcdEndpoints, apiServers, net.DefaultResolver.LookupNetIP, a.log)
	a.trust = newTrust(&a.cfg, a.log, a.enrolled)
	if err := a.cfg.ownPodCIDR(ctx, enrolment); err != nil {
		return err
	}
	a.unknown = &unknowns{a: a, ask: make(chan identity.Number, askBacklog), get: func(ctx context.Context, key string) (*kvstore.KV, int64, error) {
		return a.kv.Get(ctx, key) // made later
	}}
	a.unreadable = newUnreadable(a.cfg.Cluster, a.cfg.SharedEtcd)
	if a.filter, err = labels.ParseFilter(cfg.Labels); err != nil {
		return fmt.Errorf("--labels: %w", err)
	}
	if err := a.openKernel(ctx); err != nil {
		return err
	}
	defer func() { _ = a.dp.Close() }()
	if err := a.attachTunnel(); err != nil {
		return err
	}
	if err := a.openProbes(ctx); err != nil {
		return err
	}
	defer func() { _ = a.tunnel.probes.Close() }()
	if err := a.openKeyspace(); err != nil {
		return err
	}
	defer func() { _ = a.kv.Close() }()
	if err := a.openNames(); err != nil {
		return err
	}
	return a.run(ctx)
}

// openKernel takes over or makes the node's devices and datapath.
func (a *Agent) openKernel(ctx context.Context) error {
	underlay, err := netdev.Lookup(a.cfg.UnderlayDevice)
	if err != nil {
		return fmt.Errorf("--underlay-device: %w", err)
	}
	if !slices.ContainsFunc(underlay.Addrs, func(p netip.Prefix) bool { return p.Addr() == a.cfg.NodeAddress }) {
		return fmt.Errorf("--node-address %s: device %s has %v", a.cfg.NodeAddress, underlay.Name, underlay.Addrs)
	}
	a.mtu = underlay.MTU
	if err := a.cfg.checkMTU(underlay); err != nil {
		return err
	}
	if a.space, err = identity.NewSpace(a.cfg.ClusterBits); err != nil {
		return err
	}
	if a.host.pair, err = netdev.EnsureHostDevice(a.hostConfig()); err != nil {
		return err
	}
	if err := a.openTunnel(ctx, underlay.Type); err != nil {
		return err
	}
	cfg := loader.Config{
		PinPath: a.cfg.PinPath, TunnelDevice: a.tunnel.device(), UnderlayDevice: a.cfg.UnderlayDevice, NodeAddr: a.cfg.NodeAddress, NodeAddr6: a.cfg.nodeAddress6(), TunnelPort: a.cfg.TunnelPort,
		HostDevice: netdev.HostDevice, NetDevice: netdev.HostPeer, ClusterBits: a.cfg.ClusterBits, Attach: a.cfg.Attach,
	}
	if !a.cfg.KeepPodAddresses {
		cfg.Masquerade = loader.MasqueradePorts()
		if cfg.Masquerade6, err = a.cfg.chooseAddress6(ctx); err != nil {
			return err
		}
	}
	if a.cfg.SmallMaps {
		cfg.MapSizes = loader.SmallMaps()
	}
	if a.dp, err = loader.Open(cfg, a.log); err != nil {
		return netdev.PortInUse(a.cfg.TunnelPort, err)
	}
	if a.reconciler, err = reconcile.New(a.dp, a.tables, a.log); err != nil {
		return err
	}
	return a.dropStale()
}

// openKeyspace makes everything that reads or writes keys, and the endpoints.
func (a *Agent) openKeyspace() error {
	tls, err := a.cfg.etcdTLS()
	if err != nil {
		return err
	}
	if a.kv, err = etcd.NewClient(etcd.ClientConfig{Endpoints: a.cfg.EtcdEndpoints, TLS: tls, Observe: a.timers.etcd.Observe, Log: a.log}); err != nil {
		return err
	}
	records, err := openRecords(a.cfg.StateDir)
	if err != nil {
		return err
	}
	if err := a.makeView(records); err != nil {
		return err
	}
	if err := a.makeStores(); err != nil {
		return err
	}
	pool, err := newPools(&a.cfg)
	if err != nil {
		return fmt.Errorf("--pod-cidr: %w", err)
	}
	a.publisher = &publisher{
		cfg: &a.cfg, log: a.log, writer: a.writer, view: a.view, ips: a.view.ips, mtu: a.mtu,
		endpoints: map[netip.Addr]loadbalancer.LocalEndpoint{}, slices: map[serviceName][]kvstore.Key{}, changed: make(chan struct{}, 1),
		enforced: a.enforcedRevisions, inPart: a.toldProblems, trust: a.trust.believed, tell: make(chan struct{}, 1),
	}
	a.watchman = newWatchman(&a.cfg, a.view, a.tunnel.probes, a.mtu, a.publisher.wakeStatus, a.log)
	a.publisher.paths, a.publisher.refutes = a.watchman.reports, a.watchman.refutes.Load
	a.endpoints = &endpoints{
		cfg: &a.cfg, log: a.log, store: records, pool: pool, tables: a.tables, engine: a.view.engine,
		ids: a.ids, filter: a.filter, kernel: kernelOf{a.dp, a.reconciler}, mesh: a.publisher, ready: a.ready, mtu: a.mtu, space: a.space,
		flush: a.view.flush, gone: func(r *record) bool { return deviceGone(a.log, r) }, whois: a.view.whois, byKey: map[string]*record{}, holds: map[string]bool{}, locks: map[string]chan struct{}{},
	}
	return nil
}

// kernelOf is what endpoints need of the datapath.
type kernelOf struct {
	*loader.Datapath
	*reconcile.Reconciler
}

// makeView makes the tables' sources. Rule sets keep the numbers that the
// endpoints' records remember, so that no endpoint is ever judged by another's
// rules while the kernel catches up.
func (a *Agent) makeView(records *recordStore) error {
	remembered, err := records.load()
	if err != nil {
		a.log.Error("some endpoint records cannot be read", "error", err)
	}
	numbers := map[string]uint32{}
	for _, r := range remembered {
		if ls, err := r.remembered(); err == nil && r.RuleSet >= datapath.FirstRuleSet {
			numbers[r.subject(ls).Name()] = r.RuleSet
		}
	}
	if a.pinned, err = maps.Dump[maps.IPKey, maps.Endpoint](a.dp.Maps().Endpoints); err != nil {
		return fmt.Errorf("read the adopted endpoints: %w", err)
	}
	taken := slices.Collect(gomaps.Values(numbers))
	for _, row := range a.pinned {
		if row.RuleSet >= datapath.FirstRuleSet && !slices.Contains(taken, row.RuleSet) {
			taken = append(taken, row.RuleSet)
			numbers[fmt.Sprintf("%s%d", lostPrefix, row.RuleSet)] = row.RuleSet
		}
	}
	engine, err := policy.New(policy.Config{
		Cluster: a.cfg.Cluster, Scope: a.cfg.PolicyScope, Mode: a.cfg.PolicyMode, Audit: a.cfg.PolicyAudit, RuleSetIDs: numbers,
		MaxEntries: int(a.dp.Maps().Policy.MaxEntries()),
	})
	if err != nil {
		return err
	}
	ips, err := ipcache.New(ipcache.Config{Cluster: a.cfg.Cluster, Node: a.cfg.Node, Tunnel: a.cfg.NodeAddress})
	if err != nil {
		return err
	}
	ways, err := adoptedPathMTUs(a.dp.Maps().Nodes)
	if err != nil {
		return err
	}
	ips.AssumePathMTUs(ways)
	lb, err := loadbalancer.NewDesired(a.cfg.Cluster)
	if err != nil {
		return err
	}
	a.view = newView(liveness.NodeID{Cluster: a.cfg.Cluster, Node: a.cfg.Node}, a.space, a.log, a.tables, engine, ips, lb, newNames(a.cfg.Cluster, lb, a.ready, a.complete))
	a.view.propagation.observe = a.timers.stage
	a.view.routeOwn(a.cfg.podCIDRs()...)
	a.tables.RuleSets.Set(datapath.InitRuleSet, policy.InitRuleSet())
	a.marks = newMarkers(a.cfg.Cluster, func() bool { return a.unreadable.policies() || a.view.mute() }, func() { close(a.ready) }, func() { close(a.complete) })
	return nil
}

// makeStores makes the readers of state/ and local/ and the writers of this
// node's keys.
func (a *Agent) makeStores() error {
	limits := kvstore.Limits{Space: a.space, ClusterID: a.view.lookupCluster}
	marks := store.SyncedMarkers{Client: a.kv, Own: a.cfg.Cluster}
	bad := func(b *kvstore.BadRecord) { a.timers.refused.Add(b.Reason) } // the reader logs it
	reader := func(prefix string, apply func(store.Batch)) (*store.Reader, error) {
		return store.NewReader(store.ReaderConfig{
			Client: a.kv, Prefix: prefix, Apply: apply, Limits: limits, OnBad: bad, Markers: marks, Log: a.log,
		})
	}
	var err error
	a.index = allocator.NewIndex(a.cfg.Cluster)
	a.ids = newNumbers(&a.cfg, a.space, a.kv, a.index, a.log)
	use := func(b store.Batch) {
		a.index.Apply(b)
		a.view.apply(b)
	}
	a.grants = newGrants(a.cfg.Cluster, a.space, a.log, use, a.timers.refused.Add)
	if a.state, err = reader(kvstore.SubtreePrefix(kvstore.State), func(b store.Batch) {
		a.grants.state(b)
		a.watchman.state(b)
		a.unreadable.apply(kvstore.State, b)
		a.putBack(b, a.ids.concerned(b))
		if b.Listed {
			a.view.listed(kvstore.KindIdentity, b.Revision)
		}
		if id := a.view.lookupCluster(a.cfg.Cluster); id != 0 {
			a.ids.setCluster(id)
		}
		a.marks.state(b.Revision)
	}); err != nil {
		return err
	}
	if a.local, err = reader(kvstore.Prefix(kvstore.Local, a.cfg.Cluster), func(b store.Batch) {
		a.index.Apply(b)
		a.view.apply(b)
		if b.Listed {
			a.view.verdictsRead()
		}
		a.grants.local(b)
		a.unreadable.apply(kvstore.Local, b)
		a.trust.apply(b)
		a.watchman.local(b)
		a.publisher.configure(b)
		a.putBack(b, a.ids.unreferenced(b))
		a.marks.local(b)
	}); err != nil {
		return err
	}
	if a.writer, err = store.NewWriter(store.WriterConfig{
		Client: a.kv, Prefixes: ownPrefixes(a.cfg.Cluster), Owned: ownedBy(a.cfg.Node), Log: a.log,
	}); err != nil {
		return err
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	a.presence, err = store.NewPresence(store.PresenceConfig{
		Client: a.kv, Cluster: a.cfg.Cluster, Node: a.cfg.Node, BootID: boot, HasPodCIDR: true, HasPodCIDR6: a.cfg.PodCIDR6.IsValid(), Log: a.log,
	})
	return err
}

// run brings the node up and keeps it until the context ends.
func (a *Agent) run(ctx context.Context) error {
	a.endpoints.restore(a.pinned)
	if err := a.publisher.announceNode(); err != nil {
		return err
	}
	for _, r := range a.endpoints.snapshot() {
		if r.State == stateRestoring && len(r.Labels) > 0 {
			for _, addr := range r.addrs() {
				a.view.ips.SetEndpoint(addr, r.Identity, r.workload())
			}
		}
	}
	for _, n := range []identity.Number{identity.RemoteNode, identity.Health} {
		a.tables.Identities.Set(n, datapath.Identity{Number: n})
	}
	addrs := a.tellHostAddrs(nil)
	a.view.flush()
	lis, err := unixsocket.Listen(ctx, a.cfg.Socket)
	if err != nil {
		return err
	}
	monitoring, err := metrics.Listen(ctx, a.cfg.MetricsListen)
	if err != nil {
		return err
	}
	if err := errors.Join(a.dp.AttachUnderlay(), a.dp.AttachHost(), a.attachSockets()); err != nil {
		return err
	}
	api := grpc.NewServer()
	hawserv1.RegisterNodeServer(api, &service{a: a})
	web, err := rest.Gateway(ctx, a.cfg.Socket, hawserv1.RegisterNodeHandler)
	if err != nil {
		return err
	}

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.reconciler.Run(ctx) })
	g.Go(func() error { return a.view.propagation.run(ctx, a.reconciler.Wait) })
	g.Go(func() error {
		return a.grants.run(ctx, a.kv, kvstore.Limits{Space: a.space, ClusterID: a.view.lookupCluster})
	})
	g.Go(func() error { return a.state.Run(ctx) })
	g.Go(func() error { return a.local.Run(ctx) })
	g.Go(func() error { return a.writer.Run(ctx) })
	g.Go(func() error { return a.presence.Run(ctx) })
	g.Go(func() error { return a.publisher.run(ctx, a.history) })
	g.Go(func() error { return a.keepRoutes(ctx) })
	g.Go(func() error { return a.keepTunnel(ctx) })
	g.Go(func() error { return a.keepHost(ctx) })
	g.Go(func() error { return a.outside.run(ctx) })
	g.Go(func() error { return a.endpoints.keepDevices(ctx) })
	g.Go(func() error { return a.keepHostAddrs(ctx, addrs) })
	a.watch() // what an earlier agent was asked for is over
	g.Go(func() error { return maps.ReadEvents(ctx, a.dp.Maps().Events, a.handleEvent) })
	g.Go(func() error { return a.dp.RunGC(ctx, loader.GCConfig{}) })
	g.Go(func() error { return a.dp.RunSettle(ctx) })
	g.Go(func() error { return a.keepIdentities(ctx) })
	g.Go(func() error { return a.view.retirePrefixes(ctx) })
	g.Go(func() error { return a.unknown.run(ctx) })
	g.Go(func() error { return a.runNames(ctx) })
	g.Go(func() error { return a.trust.run(ctx, func() { a.publisher.publishStatus(a.history()) }) })
	g.Go(func() error { return a.watchman.run(ctx) })
	g.Go(func() error { return a.endSockets(ctx) })
	if monitoring != nil {
		h := metrics.Handler(metrics.NewCollector(Metrics(), a.metricsSource(), a.log, a.timers.kept()...), a.healthy)
		g.Go(func() error { return metrics.Serve(ctx, monitoring, h) })
	}
	if a.enrolled {
		g.Go(func() error { return (&enrol.Renewer{Node: *a.cfg.node()}).Run(ctx) })
	}
	g.Go(func() error { a.settle(ctx); return nil })
	g.Go(func() error { return rest.Serve(lis, api, web) })
	g.Go(func() error {
		<-ctx.Done()
		close(a.stopping)
		var once sync.Once
		timer := time.AfterFunc(2*time.Second, func() { once.Do(api.Stop) })
		defer timer.Stop()
		api.GracefulStop()
		return nil
	})
	a.log.Info("agent is up", "adopted", a.dp.Adopted(), "attach", a.dp.AttachMode(), "socket", a.cfg.Socket, "took", time.Since(a.started))
	err = g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// settle finishes the restore and then lets what is stale be removed: own keys
// once the own endpoints are back, kernel state once everything of every cluster
// is known.
func (a *Agent) settle(ctx context.Context) {
	a.endpoints.resume(ctx)
	if ctx.Err() != nil {
		return
	}
	a.writer.Prune()
	a.view.wakeIdentities()
	if _, err := a.dp.PruneLinks(); err != nil {
		a.log.Warn("remove links of devices that are gone", "error", err)
	}
	if err := a.ids.pruneRefs(ctx); err != nil {
		a.log.Warn("remove stale references to identities", "error", err)
	}
	a.publisher.publishStatus(a.history())
	select {
	case <-ctx.Done():
		return
	case <-a.complete:
	}
	a.view.engine.DropUnclaimed()
	a.view.flush()
	for _, t := range a.reconciler.Status() {
		if err := a.reconciler.MarkComplete(t.Table); err != nil {
			a.log.Error("mark table complete", "error", err)
		}
	}
	debug.FreeOSMemory() // the listings of a large mesh leave as much garbage as they leave state
	a.log.Info("the mesh is known completely; stale state is removed from now on")
}

func (a *Agent) incarnation() string { return a.state.Status().Incarnation }

// history is where in which history of the store this node stands.
type history struct {
	incarnation string
	mixed       bool // records of an earlier one are still believed
}

func (a *Agent) history() history {
	s := a.state.Status()
	return history{incarnation: s.Incarnation, mixed: s.Frozen > 0}
}

// keyspaceStatus is how the connection to the keyspace stands.
func (a *Agent) keyspaceStatus() *hawserv1.KeyspaceStatus {
	s, l := a.state.Status(), a.local.Status()
	out := &hawserv1.KeyspaceStatus{
		Connected: s.Connected && l.Connected, Endpoint: a.kv.Endpoint(), Since: s.Since.UnixNano(),
		Revision: s.Revision, Incarnation: s.Incarnation, LastError: s.Err,
	}
	if s.Connected && !l.Connected {
		out.Since, out.LastError = l.Since.UnixNano(), l.Err
	}
	return out
}
