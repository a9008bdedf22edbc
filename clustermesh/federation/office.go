// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/election"
	"github.com/hawser-mesh/hawser/internal/backoff"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	// claimWithin is shorter than a dialler waits for our hello.
	claimWithin = helloWithin - time.Second
	// givenBackFor is longer than others need to see that the office is free.
	givenBackFor = time.Second
	// inVainMost is the longest that a replica dials without success before
	// it lets another one try.
	inVainMost = time.Minute
)

var (
	errElsewhere = errors.New("another API server of this cluster has the stream; try the other endpoints")
	errStandby   = errors.New("another API server of this cluster has the peer")
)

// office is the right of one API server among those of the cluster to have the
// peer's stream: to dial it, to write what it brings, and to say how it is. It is
// stood for all the time; who has it and no stream loses it to one with whom the
// peer speaks.
type office struct {
	kv    kvstore.Client
	cfg   *Config
	own   string
	peer  string
	drop  chan *election.Term // a term found to be lost, or to be given back
	taken atomic.Bool         // a stream waits: take it from who has none

	mu     sync.Mutex
	term   *election.Term // nil: not ours
	change chan struct{}  // closed when term changes
}

func newOffice(kv kvstore.Client, cfg *Config, own, peer string) *office {
	return &office{kv: kv, cfg: cfg, own: own, peer: peer, drop: make(chan *election.Term, 1), change: make(chan struct{})}
}

// current is the term, nil while another replica has the office, and a channel
// that is closed when that changes.
func (o *office) current() (*election.Term, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.term, o.change
}

func (o *office) set(t *election.Term) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.term = t
	close(o.change)
	o.change = make(chan struct{})
}

// giveUp ends a term; it does not wait.
func (o *office) giveUp(t *election.Term) {
	select {
	case o.drop <- t:
	default: // one is being given up
	}
}

// run stands for the office until the context ends; onWon is called, and waited
// for, before each term is known, onLost at its end.
func (o *office) run(ctx context.Context, onWon func(context.Context), onLost func()) error {
	b := backoff.New(o.cfg.BackoffMin, o.cfg.BackoffMax)
	for ctx.Err() == nil {
		t, err := election.Acquire(ctx, election.Config{Client: o.kv, Cluster: o.own, Office: []string{"import", o.peer},
			Replica: o.cfg.Replica, Oust: func(holder string) bool { return o.mayOust(ctx, holder) }})
		if err != nil {
			_ = b.Wait(ctx)
			continue
		}
		b.Reset()
		o.taken.Store(false)
		onWon(ctx)
		o.set(t)
		pause := o.keep(ctx, t)
		o.set(nil)
		onLost()
		t.Release(ctx)
		if pause > 0 {
			sleep(ctx, pause)
		}
	}
	return ctx.Err()
}

// keep returns when the term is over; pause is how long others may have it
// before we stand again.
func (o *office) keep(ctx context.Context, t *election.Term) (pause time.Duration) {
	for {
		select {
		case <-t.Lost():
			return 0
		case d := <-o.drop:
			if d == t {
				return givenBackFor
			}
		case <-ctx.Done():
			return 0
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// claim waits for the office because the peer speaks to us. If it has a lower
// name its stream is the one that stays, and a replica of ours that is dialling
// gives way at once; else that gets a moment to succeed.
func (o *office) claim(ctx context.Context, peerIsLower bool) (*election.Term, error) {
	began := time.Now()
	t := time.NewTicker(viewEvery / 5)
	defer t.Stop()
	for {
		term, change := o.current()
		if term != nil {
			return term, nil
		}
		waited := time.Since(began)
		if waited > claimWithin {
			o.taken.Store(false)
			return nil, errElsewhere
		}
		if peerIsLower || waited > o.cfg.LostAfter {
			o.taken.Store(true)
		}
		select {
		case <-change:
		case <-t.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// mayOust reports whether the office may be taken from a holder: a stream waits
// here and, by the view of the peer that the holder writes, it has none.
func (o *office) mayOust(ctx context.Context, holder string) bool {
	if !o.taken.Load() {
		return false
	}
	v := &keyspacev1.PeerView{}
	kv, _, err := o.kv.Get(ctx, viewKey(o.own, o.peer))
	if err != nil {
		return false
	}
	if kv == nil || proto.Unmarshal(kv.Value, v) != nil {
		return true // it never had one
	}
	return !v.GetConnected() && strings.HasPrefix(holder, v.GetReplica()+"/")
}

// viewKey is where the PeerView of a peer is.
func viewKey(own, peer string) string {
	return kvstore.NewKey(kvstore.Local, own, kvstore.KindPeerView, peer).String()
}
