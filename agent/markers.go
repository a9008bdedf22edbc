// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"sync"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// markers knows which kinds of which cluster have been copied completely and
// read by this node. A marker counts only once the watch of state/ has reached
// the marker's own revision: etcd orders nothing across watches.
type markers struct {
	own string
	// unread reports whether there are policies of the own cluster that cannot
	// be read: then they are not complete.
	unread func() bool

	mu        sync.Mutex
	complete  map[[2]string]int64 // cluster, kind → revision of the marker
	peers     map[string]bool
	stateRev  int64
	localRev  int64
	onReady   func() // own policies and identities are known
	onAll     func() // everything of every cluster is known
	ready, of bool
}

func newMarkers(own string, unread func() bool, onReady, onAll func()) *markers {
	return &markers{own: own, unread: unread, complete: map[[2]string]int64{}, peers: map[string]bool{}, onReady: onReady, onAll: onAll}
}

// local takes a batch of the local/ reader.
func (m *markers) local(b store.Batch) {
	m.mu.Lock()
	for _, c := range b.Changes {
		switch c.Key.Kind {
		case kvstore.KindSynced:
			k := [2]string{c.Key.Names[0], c.Key.Names[1]}
			if c.Deleted || c.Record.(*keyspacev1.Synced).GetState() != keyspacev1.Synced_STATE_COMPLETE {
				delete(m.complete, k)
			} else {
				m.complete[k] = c.KV.ModRevision
			}
		case kvstore.KindPeerView:
			if c.Deleted {
				delete(m.peers, c.Key.Names[0])
			} else {
				m.peers[c.Key.Names[0]] = true
			}
		}
	}
	m.localRev = max(m.localRev, b.Revision)
	m.evaluate()
}

// state takes the revision that the state/ reader has reached.
func (m *markers) state(rev int64) {
	m.mu.Lock()
	m.stateRev = max(m.stateRev, rev)
	m.evaluate()
}

// evaluate is called with the mutex held and releases it.
func (m *markers) evaluate() {
	ready := !m.ready && m.localRev > 0 && m.reached(m.own, kvstore.KindPolicy) && m.reached(m.own, kvstore.KindIdentity)
	all := !m.of && m.localRev > 0 && m.allReached()
	m.ready, m.of = m.ready || ready, m.of || all
	m.mu.Unlock()
	if ready {
		m.onReady()
	}
	if all {
		m.onAll()
	}
}

func (m *markers) reached(cluster string, k kvstore.Kind) bool {
	if k == kvstore.KindPolicy && m.unread() {
		return false
	}
	rev, ok := m.complete[[2]string{cluster, string(k)}]
	return ok && m.stateRev >= rev
}

func (m *markers) allReached() bool {
	for _, k := range []kvstore.Kind{
		kvstore.KindPolicy, kvstore.KindIdentity, kvstore.KindNode, kvstore.KindIP, kvstore.KindVTEP, kvstore.KindService, kvstore.KindSlice,
	} {
		if !m.reached(m.own, k) {
			return false
		}
		if k == kvstore.KindPolicy {
			continue // never crosses clusters
		}
		for p := range m.peers {
			if !m.reached(p, k) {
				return false
			}
		}
	}
	return true
}
