// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/allocator"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy"
)

const (
	// readyWait is how long an add waits for policies and identities of the
	// own cluster before it says "try again later".
	readyWait = 10 * time.Second
	// cleanupTimeout bounds undoing what was begun.
	cleanupTimeout = 10 * time.Second
	maxEndpoints   = 65535
)

// identities gives out numbers; identity/allocator does.
type identities interface {
	Allocate(ctx context.Context, ls labels.Set) (identity.Number, error)
	// Adopt keeps the number that an endpoint had before a restart.
	Adopt(ctx context.Context, ls labels.Set, n identity.Number) error
	Release(ctx context.Context, ls labels.Set) error
}

// kernel is what endpoints need of the datapath.
type kernel interface {
	AttachEndpoint(device string) error
	DetachEndpoint(device string) error
	// Wait blocks until the kernel follows a table up to a revision.
	Wait(ctx context.Context, table string, revision uint64) error
}

// announcer tells the rest of the mesh about this node's endpoints.
type announcer interface {
	// Announce returns when the endpoint's address is committed.
	Announce(ctx context.Context, e *record) error
	Withdraw(ctx context.Context, e *record) error
}

// endpoints makes, keeps and removes the workloads of this node.
type endpoints struct {
	cfg    *Config
	log    *slog.Logger
	store  *recordStore
	pool   *pools
	tables *datapath.Tables
	engine *policy.Engine
	ids    identities
	filter labels.Filter
	kernel kernel
	mesh   announcer
	ready  <-chan struct{} // closed when own policies and identities are known
	mtu    int             // of the underlay, bytes
	space  identity.Space
	flush  func() // publishes what the engine changed
	// gone reports whether the endpoint's device is gone, so that no pod has it.
	gone func(*record) bool
	// whois is what the keyspace says of an address and an identity.
	whois func(netip.Addr, identity.Number) (namespace, name string, labels []string)

	mu    sync.Mutex
	byKey map[string]*record
	holds map[string]bool          // the key's endpoint holds an identity and a rule set
	locks map[string]chan struct{} // an add or delete of the key is running
	next  uint16
}

// Add makes an endpoint. It is idempotent by container id and interface.
func (m *endpoints) Add(ctx context.Context, q *hawserv1.AddEndpointRequest) (*hawserv1.Endpoint, error) {
	ls, err := m.labelsOf(q)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	key := q.GetContainerId() + "/" + q.GetIfname()
	unlock, err := m.lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if r := m.get(key); r != nil {
		if r.Netns == q.GetNetns() && r.stands() && !m.gone(r) {
			return m.describe(r), nil
		}
		if err := m.destroy(ctx, r); err != nil {
			return nil, status.Errorf(codes.Unavailable, "replace endpoint %s: %v", r.workload(), err)
		}
	}
	r, err := m.begin(q, ls)
	if err != nil {
		return nil, err
	}
	if err := m.build(ctx, r); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		if derr := m.destroy(undo, r); derr != nil {
			m.log.Error("undo endpoint", "endpoint", r.ID, "error", derr)
		}
		return nil, err
	}
	m.log.Info("endpoint is ready", "endpoint", r.ID, "workload", r.workload(), "address", r.addrs(), "identity", r.Identity)
	return m.describe(r), nil
}

// labelsOf validates a request and completes its labels.
func (m *endpoints) labelsOf(q *hawserv1.AddEndpointRequest) (labels.Set, error) {
	var errs []error
	for field, value := range map[string]string{
		"container id": q.GetContainerId(), "network namespace": q.GetNetns(), "interface name": q.GetIfname(),
		"namespace": q.GetNamespace(), "name": q.GetName(),
	} {
		if value == "" {
			errs = append(errs, fmt.Errorf("endpoint without %s", field))
		}
	}
	ls, err := labels.ParseSet(q.GetLabels(), labels.CNI)
	errs = append(errs, err)
	if _, err := parseNamedPorts(q.GetNamedPorts()); err != nil {
		errs = append(errs, err)
	}
	for _, l := range ls {
		switch l.Source {
		case labels.Mesh, labels.Namespace, labels.Reserved, labels.CIDR, labels.Any:
			errs = append(errs, fmt.Errorf("label %s: source %q is not for workloads", l, l.Source))
		}
	}
	ofNamespace, err := namespaceLabels(q)
	errs = append(errs, err)
	return ls.With(ofNamespace...).With(
		labels.Label{Source: labels.Mesh, Key: labels.ClusterKey, Value: m.cfg.Cluster},
		labels.Label{Source: labels.Mesh, Key: labels.NamespaceKey, Value: q.GetNamespace()},
	), errors.Join(errs...)
}

// namespaceLabels are the labels of a request's namespace. Its name is known as
// mesh:namespace.
func namespaceLabels(q *hawserv1.AddEndpointRequest) (out []labels.Label, err error) {
	var errs []error
	for _, text := range q.GetNamespaceLabels() {
		l, err := labels.Parse(text, labels.Namespace)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("of the namespace: %w", err))
		case l.Source != labels.Namespace:
			errs = append(errs, fmt.Errorf("label %s of the namespace: it may not have another source than %q", l, labels.Namespace))
		case l.Key != labels.KubernetesName:
			out = append(out, l)
		case l.Value != q.GetNamespace():
			errs = append(errs, fmt.Errorf("label %s of the namespace: the workload is in namespace %q", l, q.GetNamespace()))
		}
	}
	return out, errors.Join(errs...)
}

// begin reserves an id and an address of each family and writes the record.
func (m *endpoints) begin(q *hawserv1.AddEndpointRequest, ls labels.Set) (*record, error) {
	key := q.GetContainerId() + "/" + q.GetIfname()
	ports, err := parseNamedPorts(q.GetNamedPorts())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	addr, addr6, err := m.pool.allocate(key)
	if err != nil {
		return nil, status.Errorf(codes.ResourceExhausted, "address for %s/%s: %v; delete pods of this node, or give it a larger --pod-cidr",
			q.GetNamespace(), q.GetName(), err)
	}
	r := &record{
		Ports:       ports,
		ContainerID: q.GetContainerId(), IfName: q.GetIfname(), Netns: q.GetNetns(),
		Network: q.GetNetwork(), Namespace: q.GetNamespace(), Name: q.GetName(), Labels: ls.Strings(), Addr: addr, Addr6: addr6,
		State: stateCreating, HostDevice: netdev.HostDeviceName(q.GetContainerId(), q.GetIfname()),
		CreatedAt: time.Now().UnixNano(),
	}
	if r.ID, err = m.freeID(); err != nil {
		m.pool.release(r)
		return nil, err
	}
	if err := m.keep(r); err != nil {
		m.drop(r)
		m.pool.release(r)
		return nil, status.Error(codes.Internal, err.Error())
	}
	return r, nil
}

func (m *endpoints) freeID() (uint16, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	used := make(map[uint16]bool, len(m.byKey))
	for _, r := range m.byKey {
		used[r.ID] = true
	}
	if len(used) >= maxEndpoints {
		return 0, status.Error(codes.ResourceExhausted, "this node has no endpoint id left")
	}
	for {
		if m.next++; m.next != 0 && !used[m.next] {
			return m.next, nil
		}
	}
}

// build makes all of an endpoint; on error the caller undoes it.
func (m *endpoints) build(ctx context.Context, r *record) error {
	// Before the device is there: nobody judges what it sends until the programs
	// are on it.
	if err := m.awaitReady(ctx); err != nil {
		return err
	}
	dev, err := netdev.EnsurePod(netdev.PodConfig{
		ContainerID: r.ContainerID, Netns: r.Netns, IfName: r.IfName,
		Addrs: r.addrs(), MTU: m.mtu, RouteMTU: m.podMTU(),
	})
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	r.IfIndex, r.HostMAC, r.PodMAC = uint32(dev.IfIndex), dev.HostMAC, dev.PodMAC
	if err := m.enlist(ctx, r); err != nil {
		code := codes.Unavailable
		if errors.Is(err, allocator.ErrExhausted) {
			code = codes.ResourceExhausted
		}
		return status.Error(code, err.Error())
	}
	r.State = stateReady
	if err := m.keep(r); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return nil
}

func (m *endpoints) awaitReady(ctx context.Context) error {
	timer := time.NewTimer(readyWait)
	defer timer.Stop()
	select {
	case <-m.ready:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-timer.C:
		return status.Error(codes.Unavailable,
			"the policies and identities of this cluster are not known yet; try again later, or see: hawser status")
	}
}

// enlist gives an endpoint its identity and rules, brings them into the kernel
// and tells the mesh. It may be repeated. Until the endpoint's row is there, the
// program drops what the pod sends.
func (m *endpoints) enlist(ctx context.Context, r *record) error {
	if err := m.kernel.AttachEndpoint(r.HostDevice); err != nil {
		return err
	}
	return m.register(ctx, r)
}

func (m *endpoints) register(ctx context.Context, r *record) error {
	ls, err := r.identityLabels(m.filter)
	if err != nil {
		return err
	}
	if err := m.hold(ctx, r, ls); err != nil {
		return err
	}
	cluster, _ := m.space.Cluster(r.Identity)
	m.flush() // the rule sets first: they may deny it
	m.tables.Identities.Set(r.Identity, datapath.Identity{Number: r.Identity, ClusterID: cluster})
	m.setRow(r)
	if err := m.mesh.Announce(ctx, r); err != nil {
		return fmt.Errorf("announce %s: %w", r.workload(), err)
	}
	return m.install(ctx, r)
}

func (m *endpoints) setRow(r *record) {
	m.tables.Endpoints.Set(r.ID, datapath.Endpoint{
		ID: r.ID, Device: r.HostDevice, IfIndex: r.IfIndex, HostMAC: r.HostMAC, PodMAC: r.PodMAC,
		Addrs: r.addrs(), Identity: r.Identity, RuleSet: r.RuleSet,
	})
}

// Delete removes an endpoint; one that is not there is no error.
func (m *endpoints) Delete(ctx context.Context, containerID, ifName string) error {
	key := containerID + "/" + ifName
	unlock, err := m.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	r := m.get(key)
	if r == nil {
		r = m.lost(netdev.HostDeviceName(containerID, ifName))
	}
	if r == nil {
		return nil
	}
	if err := m.destroy(ctx, r); err != nil {
		return status.Errorf(codes.Unavailable, "delete endpoint %s: %v", r.workload(), err)
	}
	m.log.Info("endpoint is gone", "endpoint", r.ID, "workload", r.workload())
	return nil
}

// destroy undoes everything of an endpoint and forgets it when all is gone. It
// may be repeated. A disk on which nothing can be written keeps nothing alive: a
// restart undoes what has a record and no device. The device goes before its
// program's pin: taking the program off a live device would cost another RCU
// grace period.
func (m *endpoints) destroy(ctx context.Context, r *record) error {
	r.State = stateDeleting
	if err := m.keep(r); err != nil {
		m.log.Warn("the record still says that the endpoint is there; it is removed all the same", "endpoint", r.ID, "error", err)
	}
	var errs []error
	owned := m.pool.owns(r) // else the address is another endpoint's by now
	if owned {
		errs = append(errs, m.mesh.Withdraw(ctx, r))
	}
	m.tables.Endpoints.Delete(r.ID)
	errs = append(errs, netdev.DeletePod(r.HostDevice), m.kernel.DetachEndpoint(r.HostDevice))
	// The store may be away; the allocator removes stale references later.
	if err := m.release(ctx, r); err != nil {
		m.log.Warn("release identity", "endpoint", r.ID, "error", err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	m.drop(r)
	if owned {
		m.pool.release(r)
	}
	return m.store.remove(r.ID)
}

// lock makes adds and deletes of one endpoint take turns.
func (m *endpoints) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		unlock, busy := m.tryLock(key)
		if busy == nil {
			return unlock, nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
}

// tryLock is lock when nothing of the endpoint is running; else busy is closed
// when that is over.
func (m *endpoints) tryLock(key string) (unlock func(), busy <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if busy, locked := m.locks[key]; locked {
		return nil, busy
	}
	done := make(chan struct{})
	m.locks[key] = done
	return func() {
		m.mu.Lock()
		delete(m.locks, key)
		m.mu.Unlock()
		close(done)
	}, nil
}

// keep stores a copy of a record in memory and on disk.
func (m *endpoints) keep(r *record) error {
	c := *r
	m.mu.Lock()
	m.byKey[r.key()] = &c
	m.mu.Unlock()
	return m.store.save(&c)
}

// drop takes a record out of memory.
func (m *endpoints) drop(r *record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.byKey, r.key())
}

// get is a copy of a record, nil when there is none.
func (m *endpoints) get(key string) *record {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.byKey[key]
	if !ok {
		return nil
	}
	c := *r
	return &c
}

// snapshot are copies of all records by id.
func (m *endpoints) snapshot() []*record {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*record, 0, len(m.byKey))
	for r := range maps.Values(m.byKey) {
		c := *r
		out = append(out, &c)
	}
	slices.SortFunc(out, func(a, b *record) int { return int(a.ID) - int(b.ID) })
	return out
}
