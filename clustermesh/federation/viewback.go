// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/election"
	"github.com/hawser-mesh/hawser/internal/backoff"
	"github.com/hawser-mesh/hawser/kvstore"
)

// viewWatch says when somebody wrote the PeerView.
type viewWatch struct {
	wake chan struct{} // capacity 1
	stop func()        // ends it, and waits for that
}

// again has the view looked at once more, a moment later.
func (w *viewWatch) again() {
	time.AfterFunc(viewEvery, w.poke)
}

func (w *viewWatch) poke() {
	select {
	case w.wake <- struct{}{}:
	default: // it is awake
	}
}

// followView watches the PeerView, until it is stopped or the context ends. What
// was written while there was no watch is looked at when there is one again.
func (r *runner) followView(ctx context.Context) *viewWatch {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	w := &viewWatch{wake: make(chan struct{}, 1), stop: func() { cancel(); running.Wait() }}
	key := viewKey(r.own(), r.name())
	running.Go(func() {
		b := backoff.New(r.cfg.BackoffMin, r.cfg.BackoffMax)
		for ctx.Err() == nil {
			if _, rev, err := r.kv.Get(ctx, key); err == nil {
				w.poke()
				_ = r.kv.Watch(ctx, key, rev+1, func(batch kvstore.WatchBatch) error {
					b.Reset()
					for _, ev := range batch.Events {
						if ev.Key == key { // and not that of a peer whose name begins with this one's
							w.poke()
						}
					}
					return nil
				})
			}
			_ = b.Wait(ctx)
		}
	})
	return w
}

// putBackView has the PeerView say what this term wrote last, if it is missing
// or says anything else: without it agents withdraw all of the peer. A peer that
// is leaving, by whichever API server, is left alone.
func (r *runner) putBackView(ctx context.Context, term *election.Term, last *keyspacev1.PeerView) error {
	if last.GetPeer() == "" { // nothing is known of it
		return nil
	}
	key := kvstore.NewKey(kvstore.Local, r.own(), kvstore.KindPeerView, r.name())
	found, _, err := r.kv.Get(ctx, key.String())
	if err != nil || found != nil && kvstore.SameRecord(key, found.Value, encode(last)) {
		return err
	}
	as := kvstore.Absent(key.String())
	if found != nil {
		as = kvstore.AtRevision(key.String(), found.ModRevision)
	}
	record := kvstore.NewKey(kvstore.Private, r.own(), kvstore.KindPeerView, r.name()).String()
	peer := &keyspacev1.Peer{}
	at, _, err := r.kv.Get(ctx, record)
	if err != nil || at == nil || proto.Unmarshal(at.Value, peer) == nil && peer.GetState() != keyspacev1.Peer_STATE_CONFIRMED {
		return err
	}
	back := proto.CloneOf(last)
	back.UpdatedAt = r.st.now().UnixNano()
	cmps := append(term.Fence(), as, kvstore.AtRevision(record, at.ModRevision))
	res, err := r.kv.Txn(ctx, cmps, []kvstore.Op{kvstore.Put(key.String(), encode(back))}, nil)
	if err != nil {
		return err
	}
	if !res.Succeeded { // lost to another write of the view, which wakes us, or of the peer's record
		if held, err := term.Held(ctx); err != nil || !held {
			return err
		}
		return errChanged
	}
	if r.putBack != nil {
		r.putBack(key, found)
	}
	return nil
}
