// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/internal/backoff"
	"github.com/hawser-mesh/hawser/internal/tlsgrpc"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/observe/stages"
)

const (
	expireEvery    = 2 * time.Second
	reconcileEvery = 30 * time.Second
)

// Manager federates one cluster: a runner for each confirmed peer, and the port
// at which peers and joiners call. Its methods may be called from any goroutine;
// Leave and DiffPeer need Run to be running.
type Manager struct {
	federationv1.UnimplementedFederationServer

	cfg     Config
	kv      kvstore.Client
	now     func() time.Time
	log     *slog.Logger
	store   *peering.Store
	trust   *peering.Trust
	join    *peering.Service
	port    *port         // nil: dial only
	kick    chan struct{} // look at the peers again
	deps    peering.Deps
	explain Explainer
	observe func(peer string, s stages.Stage, took time.Duration) // nil: nobody wants to know
	putBack func(kvstore.Key, *kvstore.KV)                        // as observe
	workers sync.WaitGroup                                        // runners and leaves

	mu      sync.Mutex
	peers   map[string]*keyspacev1.Peer
	runners map[string]*runner
	states  map[string]*peerState
	// unreadable are the peers whose record is there and cannot be read.
	unreadable map[string]*peering.UnreadableError
	leaves     map[string]*leave
	// withdrawing are the leaves that have a goroutine.
	withdrawing map[string]bool
}

// New makes a Manager; it listens at once, so that Addr is known, and starts
// nothing.
func New(cfg Config, d Deps) (*Manager, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	own := cfg.Cluster.GetName()
	trust, err := peering.NewTrust(own, d.Creds, d.Now)
	if err != nil {
		return nil, err
	}
	m := &Manager{cfg: cfg, kv: d.KV, now: d.Now, log: d.Log, trust: trust, store: peering.NewStore(d.KV, own, d.Now),
		kick: make(chan struct{}, 1), peers: map[string]*keyspacev1.Peer{}, runners: map[string]*runner{},
		states: map[string]*peerState{}, leaves: map[string]*leave{}, withdrawing: map[string]bool{}}
	m.deps = peering.Deps{Own: m.description, Store: m.store, Trust: trust, Creds: d.Creds, Now: d.Now, Log: d.Log}
	m.join = peering.NewService(m.deps)
	m.explain, m.observe, m.putBack = d.Explain, d.Observe, d.PutBack
	if d.Listener == nil && cfg.Listen != "" {
		if d.Listener, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", cfg.Listen); err != nil {
			return nil, fmt.Errorf("listen for federation on %s: %w", cfg.Listen, err)
		}
	}
	if d.Listener != nil {
		m.port = newPort(d.Listener, trust, m, m.join, d.Now, d.Log)
	}
	return m, nil
}

func (m *Manager) own() string { return m.cfg.Cluster.GetName() }

func (m *Manager) description() *keyspacev1.Cluster { return proto.CloneOf(m.cfg.Cluster) }

// Addr is where the federation port listens; nil if it does not.
func (m *Manager) Addr() net.Addr {
	if m.port == nil {
		return nil
	}
	return m.port.lis.Addr()
}

// Run federates until the context ends. All that it started has ended when it
// returns; what peers published stays in the store.
func (m *Manager) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if m.port != nil {
		g.Go(func() error { return m.port.run(ctx) })
	}
	g.Go(func() error { return m.watchPeers(ctx) })
	g.Go(func() error { return m.reconcileLoop(ctx) })
	g.Go(func() error { return m.expire(ctx) })
	err := g.Wait()
	m.mu.Lock()
	rs := make([]*runner, 0, len(m.runners))
	for n, r := range m.runners {
		rs = append(rs, r)
		delete(m.runners, n)
	}
	m.mu.Unlock()
	for _, r := range rs {
		r.stop()
	}
	m.workers.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (m *Manager) poke() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// watchPeers pokes the reconciler at every change below private/<own>/peers/.
func (m *Manager) watchPeers(ctx context.Context) error {
	b := backoff.New(m.cfg.BackoffMin, m.cfg.BackoffMax)
	for {
		_, rev, err := m.kv.Get(ctx, m.store.PeersPrefix())
		if err == nil {
			m.poke()
			err = m.kv.Watch(ctx, m.store.PeersPrefix(), rev+1, func(w kvstore.WatchBatch) error {
				b.Reset()
				if len(w.Events) > 0 {
					m.poke()
				}
				return nil
			})
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		m.log.Debug("watch of peers ended", "err", err)
		if err := b.Wait(ctx); err != nil {
			return err
		}
	}
}

func (m *Manager) reconcileLoop(ctx context.Context) error {
	t := time.NewTicker(reconcileEvery)
	defer t.Stop()
	b := backoff.New(m.cfg.BackoffMin, m.cfg.BackoffMax)
	for {
		select {
		case <-m.kick:
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := m.reconcile(ctx); err != nil && ctx.Err() == nil {
			m.log.Warn("peers not read", "err", err)
			if err := b.Wait(ctx); err != nil {
				return err
			}
			m.poke()
			continue
		}
		b.Reset()
	}
}

// reconcile makes runners and trust equal to the peers' records.
func (m *Manager) reconcile(ctx context.Context) error {
	list, rev, err := m.store.Peers(ctx)
	if rev == 0 {
		return err
	}
	peers := make(map[string]*keyspacev1.Peer, len(list))
	for _, p := range list {
		peers[p.GetName()] = p
	}
	if err != nil {
		m.log.Warn("peers' records cannot be read", "err", err)
	}
	bad := peering.Unreadable(err)
	all := slices.Clone(list)
	m.mu.Lock()
	for name := range bad { // not removed: what was known holds
		if old := m.peers[name]; old != nil {
			peers[name] = old
			all = append(all, old)
		}
	}
	m.peers, m.unreadable = peers, bad
	var gone []*runner
	for name, r := range m.runners {
		if p := peers[name]; p.GetState() != keyspacev1.Peer_STATE_CONFIRMED || !samePeer(p, r.peer) {
			gone = append(gone, r)
			delete(m.runners, name)
		}
	}
	for name := range m.states {
		if peers[name] == nil {
			delete(m.states, name)
		}
	}
	m.mu.Unlock()
	for _, r := range gone {
		m.end(r)
	}
	for _, p := range list {
		switch p.GetState() {
		case keyspacev1.Peer_STATE_CONFIRMED:
			if r := m.runner(p.GetName()); r != nil {
				r.setTerms(termsOf(p, &m.cfg))
				if err := m.trust.SetPeer(p.GetName(), p.GetTrustBundle()); err != nil {
					m.log.Error("peer's new CA not trusted", "peer", p.GetName(), "err", err)
				}
			} else {
				m.start(ctx, p, all)
			}
		case keyspacev1.Peer_STATE_LEAVING:
			m.finishLeave(ctx, p.GetName())
		}
	}
	return nil
}

// end removes the peer from trust, cuts its connections and waits for the end
// of its stream.
func (m *Manager) end(r *runner) {
	m.trust.RemovePeer(r.name())
	if m.port != nil {
		m.port.cut(r.name())
	}
	r.stop()
	m.log.Info("peer ended", "peer", r.name())
}

func (m *Manager) start(ctx context.Context, p *keyspacev1.Peer, all []*keyspacev1.Peer) {
	m.mu.Lock()
	st := m.states[p.GetName()]
	if st == nil {
		st = newPeerState(m.now)
		if m.observe != nil {
			st.observe = func(s stages.Stage, took time.Duration) { m.observe(p.GetName(), s, took) }
		}
		m.states[p.GetName()] = st
	}
	m.mu.Unlock()
	if err := m.trust.SetPeer(p.GetName(), p.GetTrustBundle()); err != nil {
		st.failed(err)
		m.log.Error("peer not trusted", "peer", p.GetName(), "err", err)
		return
	}
	guard, err := peering.NewGuard(p, peering.Taken(m.cfg.Cluster, all, p.GetName()))
	if err != nil {
		st.failed(err)
		m.log.Warn("grant narrowed", "peer", p.GetName(), "err", err)
	}
	st.do(func() { st.narrowed = err })
	st.rejudge(p.GetName(), guard)
	rctx, cancel := context.WithCancel(ctx)
	believe := func(ctx context.Context, bundle [][]byte) error {
		changed, err := m.store.LearnTrust(ctx, m.trust, p.GetName(), bundle)
		if changed {
			m.log.Info("peer's CAs changed", "peer", p.GetName(), "certificates", len(bundle))
			m.poke()
		}
		return err
	}
	r := &runner{believe: believe, kv: m.kv, store: m.store, cfg: &m.cfg, trust: m.trust, peer: p, guard: guard, st: st, log: m.log, explain: m.explain, putBack: m.putBack,
		office: newOffice(m.kv, &m.cfg, m.own(), p.GetName()), terms: termsOf(p, &m.cfg), learned: make(chan []string, 1),
		stopped: make(chan struct{}), finish: cancel, ended: make(chan struct{}), change: make(chan struct{})}
	m.mu.Lock()
	m.runners[p.GetName()] = r
	m.mu.Unlock()
	m.workers.Go(func() { r.run(rctx) })
}

func (m *Manager) runner(name string) *runner {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.runners[name]
}

func (m *Manager) expire(ctx context.Context) error {
	t := time.NewTicker(expireEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := m.store.Expire(ctx); err != nil && ctx.Err() == nil {
			m.log.Warn("expired tokens and peers not removed", "err", err)
		}
	}
}

// caller is the confirmed peer that made a call, and its connection.
func (m *Manager) caller(ctx context.Context) (*runner, tlsgrpc.ConnInfo, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, tlsgrpc.ConnInfo{}, status.Error(codes.Unauthenticated, "no connection")
	}
	info, ok := p.AuthInfo.(tlsgrpc.ConnInfo)
	if !ok || info.State.ServerName == peering.JoinServerName {
		return nil, info, status.Error(codes.PermissionDenied, "federation is served to confirmed peers only")
	}
	cluster, err := peering.ClusterOf(info.State)
	if err != nil {
		return nil, info, status.Error(codes.Unauthenticated, err.Error())
	}
	r := m.runner(cluster)
	if r == nil {
		return nil, info, status.Errorf(codes.PermissionDenied, "cluster %q is not a confirmed peer", cluster)
	}
	return r, info, nil
}

// Stream implements federationv1.FederationServer.
func (m *Manager) Stream(gs grpc.BidiStreamingServer[federationv1.Frame, federationv1.Frame]) error {
	r, info, err := m.caller(gs.Context())
	if err != nil {
		return err
	}
	s := newSession(r.name(), false, hostOf(info.Conn.RemoteAddr()), gs, func() { info.Conn.Close() })
	s.certExpires = info.State.PeerCertificates[0].NotAfter
	_, err = r.serve(gs.Context(), s)
	var bad *violation
	switch {
	case errors.Is(err, errDuplicate):
		return status.Error(codes.AlreadyExists, err.Error())
	case errors.As(err, &bad):
		return status.Error(codes.FailedPrecondition, r.own()+" refuses it: "+err.Error())
	case err != nil:
		return status.Error(codes.Unavailable, err.Error())
	}
	return nil
}
