// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/election"
	"github.com/hawser-mesh/hawser/clustermesh/invitation"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

// leave is a peer on its way out.
type leave struct {
	done    chan struct{}
	removed uint64
	err     error
}

// Invite makes a single-use token; see peering.Service.Invite.
func (m *Manager) Invite(ctx context.Context, to string, ttl time.Duration) (invitation.Token, error) {
	return m.join.Invite(ctx, to, ttl)
}

// Join joins the cluster that made the token; see peering.Join. It returns
// before the first sync.
func (m *Manager) Join(ctx context.Context, token string, preflightOnly bool) (peering.Result, error) {
	return m.JoinAs(ctx, token, peering.How{PreflightOnly: preflightOnly})
}

// JoinAs is Join with all its choices.
func (m *Manager) JoinAs(ctx context.Context, token string, how peering.How) (peering.Result, error) {
	res, err := peering.Join(ctx, m.deps, token, how)
	m.poke()
	return res, err
}

// SetAges changes how long the data of a peer is believed; see peering.Ages.
func (m *Manager) SetAges(ctx context.Context, peer string, a peering.Ages) error {
	err := m.store.SetAges(ctx, peer, a)
	m.poke()
	return err
}

// PreflightPeer looks again at a peer as it is now, and changes nothing. Its
// clock is measured on the stream.
func (m *Manager) PreflightPeer(ctx context.Context, name string) (peering.Result, error) {
	peers, bad, err := m.store.Known(ctx)
	if err != nil {
		return peering.Result{}, err
	}
	if e := bad[name]; e != nil {
		return peering.Result{}, fmt.Errorf("preflight of %s: %w", name, e)
	}
	i := slices.IndexFunc(peers, func(p *keyspacev1.Peer) bool { return p.GetName() == name })
	if i < 0 {
		return peering.Result{}, fmt.Errorf("preflight of %s: %w; peers are listed by: hawser mesh list", name, peering.ErrNoPeer)
	}
	var skew time.Duration
	m.mu.Lock()
	if st := m.states[name]; st != nil {
		st.do(func() { skew = st.lag.offset() })
	}
	m.mu.Unlock()
	return peering.Again(ctx, m.deps, peers[i], peers, skew)
}

// Leave ends the peering, also when the other side is gone: its stream is cut
// and what it published is removed, services first. It returns how many keys of
// state/<peer>/ were removed. A leave whose context ends goes on; call again to
// wait for it.
func (m *Manager) Leave(ctx context.Context, peer string) (removed uint64, err error) {
	if err := m.store.StartLeave(ctx, peer); err != nil {
		return 0, err
	}
	m.mu.Lock()
	l := m.leaves[peer]
	if l == nil || isClosed(l.done) {
		l = &leave{done: make(chan struct{})}
		m.leaves[peer] = l
	}
	m.mu.Unlock()
	m.poke()
	select {
	case <-l.done:
		return l.removed, l.err
	case <-ctx.Done():
		return 0, fmt.Errorf("leave %s: it goes on in the background: %w", peer, ctx.Err())
	}
}

// ChangeGrant changes what a peer may publish here. All that it publishes is
// judged anew.
func (m *Manager) ChangeGrant(ctx context.Context, peer string, c peering.GrantChange) (*keyspacev1.Peer, bool, error) {
	p, changed, err := m.store.ChangeGrant(ctx, m.cfg.Cluster, peer, c)
	m.poke()
	return p, changed, err
}

// Declare makes peers what a file declares; see peering.Store.Declare. fence is a
// condition that every transaction carries (nil for none): of API servers whose
// files differ for a moment, only one may.
func (m *Manager) Declare(ctx context.Context, want []peering.Declaration, fence []kvstore.Cmp) (map[string]error, error) {
	return m.store.Fenced(fence).Declare(ctx, m.cfg.Cluster, m.deps.Creds.CA(), want)
}

// Peers are the records of all peers. Those that cannot be read are in bad alone.
func (m *Manager) Peers(ctx context.Context) (peers []*keyspacev1.Peer, bad map[string]*peering.UnreadableError, err error) {
	peers, rev, err := m.store.Peers(ctx)
	if rev == 0 {
		return nil, nil, err
	}
	return peers, peering.Unreadable(err), nil
}

// finishLeave withdraws, once at a time, what a leaving peer published.
func (m *Manager) finishLeave(ctx context.Context, name string) {
	m.mu.Lock()
	l := m.leaves[name]
	if l == nil || isClosed(l.done) {
		l = &leave{done: make(chan struct{})}
		m.leaves[name] = l
	}
	running := m.withdrawing[name]
	m.withdrawing[name] = true
	m.mu.Unlock()
	if running {
		return
	}
	m.workers.Go(func() {
		l.removed, l.err = m.withdraw(ctx, name)
		m.mu.Lock()
		delete(m.withdrawing, name)
		m.mu.Unlock()
		if l.err != nil {
			m.log.Warn("leave not finished; it is tried again", "peer", name, "err", l.err)
		} else {
			m.log.Info("left peer", "peer", name, "keys_removed", l.removed)
		}
		close(l.done)
	})
}

func (m *Manager) withdraw(ctx context.Context, name string) (uint64, error) {
	lock, err := election.Acquire(ctx, election.Config{Client: m.kv, Cluster: m.own(), Office: []string{"import", name}, Replica: m.cfg.Replica})
	if err != nil {
		return 0, err
	}
	defer lock.Release(ctx)
	return m.store.Withdraw(ctx, name, lock.Fence())
}

// Status reports on all peers, in the order of their names.
func (m *Manager) Status() []*hawserv1.PeerStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*hawserv1.PeerStatus
	for name, p := range m.peers {
		st, r := m.states[name], m.runners[name]
		switch {
		case p.GetState() == keyspacev1.Peer_STATE_PENDING:
			out = append(out, &hawserv1.PeerStatus{Name: name, ClusterId: p.GetClusterId(), State: statePending, Since: p.GetCreatedAt()})
		case p.GetState() == keyspacev1.Peer_STATE_LEAVING:
			out = append(out, &hawserv1.PeerStatus{Name: name, ClusterId: p.GetClusterId(), State: stateLeaving, Since: p.GetUpdatedAt()})
		case st != nil && r != nil:
			out = append(out, st.status(p, &m.cfg, terms{r.endpoints(), r.ages()}))
		case st != nil:
			out = append(out, st.status(p, &m.cfg, termsOf(p, &m.cfg)))
		}
	}
	for name, bad := range m.unreadable {
		i := slices.IndexFunc(out, func(s *hawserv1.PeerStatus) bool { return s.GetName() == name })
		if i < 0 {
			i = len(out)
			out = append(out, &hawserv1.PeerStatus{Name: name, State: stateUnreadable})
		}
		out[i].Findings = append(out[i].Findings, &hawserv1.Finding{
			Check: "record", Object: "peer " + name, Problem: fmt.Sprintf("its record %s cannot be read: %v", bad.Key, bad.Err), Fix: bad.Fix(),
		})
	}
	slices.SortFunc(out, func(a, b *hawserv1.PeerStatus) int { return strings.Compare(a.GetName(), b.GetName()) })
	return out
}

// Acknowledged is up to where a peer has stored state/<own>/, on a stream that
// this API server holds; ok is false while it holds none. What others hold is in
// the PeerViews, up to a minute old.
func (m *Manager) Acknowledged(peer string) (pos *keyspacev1.Position, ok bool) {
	m.mu.Lock()
	st := m.states[peer]
	m.mu.Unlock()
	if st == nil {
		return nil, false
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	return proto.CloneOf(st.acked), st.session != nil
}

// Trusting says of each confirmed peer whether it believes our trust bundle of
// the moment, as it said on a stream that is up.
func (m *Manager) Trusting() map[string]bool {
	sum := peering.BundleHash(m.trust.Bundle())
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]bool{}
	for name, p := range m.peers {
		if p.GetState() != keyspacev1.Peer_STATE_CONFIRMED {
			continue
		}
		out[name] = false
		if st := m.states[name]; st != nil {
			st.do(func() { out[name] = bytes.Equal(st.trustAcked, sum[:]) })
		}
	}
	return out
}

// Ready is nil when every peer is connected and its copy complete; else it says
// which are not.
func (m *Manager) Ready() error {
	var errs []error
	for _, s := range m.Status() {
		switch {
		case s.GetState() != stateConnected:
			errs = append(errs, fmt.Errorf("peer %s is %s", s.GetName(), s.GetState()))
		case len(s.GetSyncedKinds()) < len(kvstore.PublicKinds):
			errs = append(errs, fmt.Errorf("peer %s is being copied", s.GetName()))
		}
	}
	return errors.Join(errs...)
}

// Incarnation is the id of our store, made if it has none yet.
func (m *Manager) Incarnation(ctx context.Context) (string, error) {
	return ensureIncarnation(ctx, m.kv, m.own())
}
