// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/election"
	"github.com/hawser-mesh/hawser/kvstore"
)

// observeEvery is how often a replica that has not the office looks at what the
// one that has it says.
const observeEvery = time.Second

// askEvery is how often one that has the office and no stream asks whether it
// still does. Its term is told when that is over; this is for one that was not.
const askEvery = 10 * time.Second

// The difference of the clocks is written again when it jumps, and with small
// ones once a minute at most.
const (
	driftFast = 100 * time.Millisecond
	driftSlow = time.Millisecond
)

// won begins a term: what the former holder said of the peer is taken over.
func (r *runner) won(ctx context.Context) {
	v := &keyspacev1.PeerView{}
	kv, _, err := r.kv.Get(ctx, viewKey(r.own(), r.name()))
	if err == nil && kv != nil && proto.Unmarshal(kv.Value, v) == nil {
		r.st.adopt(v)
	}
	r.st.do(func() { r.st.elsewhere = nil })
}

// views keeps local/<own>/peers/<peer> as long as the office is ours, and else
// reads it.
func (r *runner) views(ctx context.Context) error {
	t := time.NewTicker(observeEvery)
	defer t.Stop()
	for ctx.Err() == nil {
		term, change := r.office.current()
		if term != nil {
			r.keepView(ctx, term, change)
			continue
		}
		r.observe(ctx)
		select {
		case <-change:
		case <-t.C:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// keepView writes the PeerView whenever it changes, until the term is over.
func (r *runner) keepView(ctx context.Context, term *election.Term, over <-chan struct{}) {
	key := viewKey(r.own(), r.name())
	last := &keyspacev1.PeerView{}
	if kv, _, err := r.kv.Get(ctx, key); err == nil && kv != nil {
		_ = proto.Unmarshal(kv.Value, last) // unreadable is the same as none
	}
	wrote, asked := time.Now(), time.Now()
	t := time.NewTicker(viewEvery)
	defer t.Stop()
	touched := r.followView(ctx)
	defer touched.stop()
	for {
		v := r.view()
		moved := (!proto.Equal(last.GetAcknowledged(), v.GetAcknowledged()) || drifted(last, v, driftSlow)) && time.Since(wrote) >= r.cfg.IdlePersist ||
			drifted(last, v, driftFast)
		state, _ := r.st.link(r.cfg.LostAfter)
		told := state != stateConnecting
		if !told && last.GetPeer() != "" { // of its stream nothing is known yet, but its grant counts now
			was := proto.CloneOf(last)
			was.Grant, was.PodCidrs, was.NodeCidrs = v.GetGrant(), v.GetPodCidrs(), v.GetNodeCidrs()
			v, told, moved = was, true, false
		}
		if told && (moved || !sameView(last, v)) {
			v.UpdatedAt = r.st.now().UnixNano()
			res, err := r.kv.Txn(ctx, term.Fence(), []kvstore.Op{kvstore.Put(key, encode(v))}, nil)
			switch {
			case err != nil:
				r.st.failed(fmt.Errorf("write view of %s: %w", r.name(), err))
			case !res.Succeeded:
				r.office.giveUp(term)
				return
			default:
				last, wrote = v, time.Now()
			}
		}
		// Without a stream another replica may take the office.
		if cur, _ := r.current(); cur == nil && time.Since(asked) >= askEvery {
			asked = time.Now()
			if held, err := term.Held(ctx); err == nil && !held {
				r.office.giveUp(term)
				return
			}
		}
		select {
		case <-t.C:
		case <-touched.wake:
			if err := r.putBackView(ctx, term, last); err != nil && ctx.Err() == nil {
				r.st.failed(fmt.Errorf("put back view of %s: %w", r.name(), err))
				touched.again()
			}
		case <-over:
			return
		case <-ctx.Done():
			return
		}
	}
}

// view is the PeerView of the moment.
func (r *runner) view() *keyspacev1.PeerView {
	a := r.ages()
	data, since := r.st.data(r.cfg.LostAfter, a)
	v := r.st.view(r.peer, r.cfg.LostAfter)
	v.Data, v.DataSince, v.Replica = data, since.UnixNano(), r.cfg.Replica
	v.ExpireAfter = proto.Int64(int64(a.expire))
	v.Grant = r.guard.InForce()
	v.PodCidrs, v.NodeCidrs = v.Grant.GetPodCidrs(), v.Grant.GetNodeCidrs()
	return v
}

// sameView compares what readers act on.
func sameView(a, b *keyspacev1.PeerView) bool {
	x, y := proto.CloneOf(a), proto.CloneOf(b)
	for _, v := range []*keyspacev1.PeerView{x, y} {
		v.Position, v.Acknowledged, v.UpdatedAt, v.DataSince, v.FreshAt, v.ClockOffset = nil, nil, 0, 0, 0, 0
		if !v.GetConnected() {
			v.Since = 0 // exact only once the stream is given up
		}
	}
	return proto.Equal(x, y)
}

// drifted reports whether the clocks' difference is another by more than that.
func drifted(a, b *keyspacev1.PeerView, by time.Duration) bool {
	return time.Duration(a.GetClockOffset()-b.GetClockOffset()).Abs() > by
}

// observe reads what the replica that has the office says of the peer.
func (r *runner) observe(ctx context.Context) {
	v := &keyspacev1.PeerView{}
	kv, _, err := r.kv.Get(ctx, viewKey(r.own(), r.name()))
	if err != nil || kv == nil || proto.Unmarshal(kv.Value, v) != nil || v.GetReplica() == r.cfg.Replica {
		return
	}
	var synced []string
	for _, k := range kvstore.PublicKinds {
		m := &keyspacev1.Synced{}
		kv, _, err := r.kv.Get(ctx, kvstore.SyncedKey(r.own(), r.name(), k).String())
		if err == nil && kv != nil && proto.Unmarshal(kv.Value, m) == nil && m.GetState() == keyspacev1.Synced_STATE_COMPLETE {
			synced = append(synced, string(k))
		}
	}
	if term, _ := r.office.current(); term == nil {
		r.st.do(func() { r.st.elsewhere, r.st.syncedElsewhere = v, synced })
	}
}
