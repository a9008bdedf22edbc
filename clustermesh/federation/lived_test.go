// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// Time in which there was a stream is no time of dialling in vain: one that lived
// long and breaks costs nobody the office, whoever dialled it.
func TestBrokenStreamKeepsTheOffice(t *testing.T) {
	quick := func(c *testCluster) {
		c.cfg.HeartbeatEvery, c.cfg.LostAfter, c.cfg.CloseAfter = 125*time.Millisecond, 500*time.Millisecond, time.Second
	}
	for name, pair := range map[string]func(testing.TB, ...func(*testCluster)) (*testCluster, *testCluster){"one dials": oneWay, "both dial": pair} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t, quick)
			terms := func() (out [2]int64) {
				for i, c := range []*testCluster{a, b} {
					kv, _, err := c.kv.Get(t.Context(), kvstore.NewKey(kvstore.Private, c.name, kvstore.KindElection, "import", []*testCluster{b, a}[i].name).String())
					if err == nil && kv != nil {
						out[i] = kv.CreateRevision
					}
				}
				return out
			}
			var since int64
			eventually(t, "a stream older than the patience of its dialler", func() bool {
				s := b.status(a)
				since = s.GetSince()
				return s.GetState() == stateConnected && time.Since(time.Unix(0, since)) > 2*a.cfg.CloseAfter
			})
			held := terms()
			a.proxy.cut(false)
			b.proxy.cut(false)
			eventually(t, "the next stream", func() bool {
				s := b.status(a)
				return s.GetState() == stateConnected && s.GetSince() != since && a.status(b).GetState() == stateConnected
			})
			if now := terms(); now != held || now[0] == 0 || now[1] == 0 {
				t.Errorf("the offices' keys were made at %v, now %v: somebody gave one up", held, now)
			}
		})
	}
}

// deafKV answers no transaction any more from the one on that says that a copy
// is complete.
type deafKV struct {
	kvstore.Client
	marker string // prefix of the markers
	deaf   atomic.Bool
}

func (d *deafKV) Txn(ctx context.Context, cmps []kvstore.Cmp, thens, elses []kvstore.Op) (kvstore.TxnResult, error) {
	for _, op := range thens {
		m := &keyspacev1.Synced{}
		if len(op.Key) > len(d.marker) && op.Key[:len(d.marker)] == d.marker && proto.Unmarshal(op.Value, m) == nil && m.GetState() == keyspacev1.Synced_STATE_COMPLETE {
			d.deaf.Store(true)
		}
	}
	if !d.deaf.Load() {
		return d.Client.Txn(ctx, cmps, thens, elses)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second) // as the client's own
	defer cancel()
	<-ctx.Done()
	return kvstore.TxnResult{}, ctx.Err()
}

// A manager ends although its store does not answer, also while it notes that a
// copy is whole.
func TestStopWhileTheStoreIsDeaf(t *testing.T) {
	a := newCluster(t, 1)
	deaf := &deafKV{}
	b := newCluster(t, 2, func(c *testCluster) {
		deaf.marker = kvstore.KindPrefix(kvstore.Local, c.name, kvstore.KindSynced) + a.name + "/"
		c.wrap = func(kv kvstore.Client) kvstore.Client { deaf.Client = kv; return deaf }
	})
	a.ip(1, "w")
	if res, err := b.m.Join(t.Context(), invite(t, a, b.name), false); err != nil || !res.Joined {
		t.Fatalf("join: %v %v", res, err)
	}
	eventually(t, "the copy is to be noted as complete", deaf.deaf.Load)
	b.stop() // fails the test if it takes too long
}

// What is noted beyond the end of a stream has a moment for it, and until then
// all the time.
func TestOutlasting(t *testing.T) {
	parent, end := context.WithCancel(t.Context())
	ctx, cancel := outlasting(parent, time.Millisecond)
	defer cancel()
	if ctx.Err() != nil {
		t.Error("ended before its parent")
	}
	end()
	eventually(t, "it ends after its parent", func() bool { return ctx.Err() != nil })

	parent, end = context.WithCancel(t.Context())
	ctx, cancel = outlasting(parent, time.Hour)
	if end(); ctx.Err() != nil {
		t.Error("ended with its parent")
	}
	if cancel(); ctx.Err() == nil {
		t.Error("not ended when it was cancelled")
	}
}
