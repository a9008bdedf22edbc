// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// readKeyspace is a keyspace with some identities that notes when it is read.
type readKeyspace struct {
	has   map[string][]byte
	fail  error
	reads map[string][]time.Time
	all   []time.Time
}

func (k *readKeyspace) Get(_ context.Context, key string) (*kvstore.KV, int64, error) {
	k.reads[key] = append(k.reads[key], time.Now())
	k.all = append(k.all, time.Now())
	value, ok := k.has[key]
	if !ok || k.fail != nil {
		return nil, 1, k.fail
	}
	return &kvstore.KV{Key: key, Value: value, ModRevision: 1}, 1, nil
}

func identityKey(n identity.Number) kvstore.Key {
	return kvstore.NewKey(kvstore.State, "east", kvstore.KindIdentity, kvstore.NumberName(uint32(n)))
}

// asker runs unknowns over a keyspace, in a bubble whose clock moves when all wait.
func asker(t *testing.T, kv *readKeyspace) (u *unknowns, drop func(identity.Number)) {
	space, err := identity.NewSpace(identity.DefaultClusterBits)
	if err != nil {
		t.Fatal(err)
	}
	kv.reads = map[string][]time.Time{}
	v := &view{clusters: map[string]uint32{"east": 1}, identities: map[identity.Number]knownIdentity{}}
	told := make(chan struct{})
	close(told)
	a := &Agent{space: space, view: v, log: slog.New(slog.DiscardHandler)}
	a.grants = &grants{own: "east", told: told, use: func(b store.Batch) {
		v.mu.Lock()
		defer v.mu.Unlock()
		for _, c := range b.Changes {
			v.identities[identity.Number(c.Record.(*keyspacev1.Identity).GetNumber())] = knownIdentity{cluster: "east"}
		}
	}}
	u = &unknowns{a: a, ask: make(chan identity.Number, askBacklog), get: kv.Get}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- u.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return u, func(n identity.Number) {
		u.seen(datapath.Event{SourceID: n})
		time.Sleep(2 * askEvery) // in the bubble: at once
		synctest.Wait()
	}
}

const stranger = identity.Number(1<<16 + 300)

// An identity that is not there is asked for once in five seconds, however many of
// its packets are dropped; an error is no answer to ask for again sooner.
func TestUnknownIdentityIsAskedForOnce(t *testing.T) {
	for name, fail := range map[string]error{"not there": nil, "no answer": errors.New("no leader")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				kv := &readKeyspace{fail: fail}
				_, drop := asker(t, kv)
				start := time.Now()
				reads := func(want int) {
					t.Helper()
					if got := len(kv.reads[identityKey(stranger).String()]); got != want {
						t.Fatalf("%d reads after %s, want %d", got, time.Since(start), want)
					}
				}
				for range 10 {
					drop(stranger)
				}
				reads(1)
				time.Sleep(5*time.Second - time.Since(start) - 50*time.Millisecond)
				drop(stranger)
				reads(1)
				time.Sleep(5*time.Second - time.Since(start) + time.Millisecond)
				drop(stranger)
				drop(stranger)
				reads(2)
				drop(stranger + 1) // another one does not wait for it
				if len(kv.all) != 3 {
					t.Errorf("%d reads of all", len(kv.all))
				}
			})
		})
	}
}

// One that is there is known from then on.
func TestUnknownIdentityBecomesKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		value, err := kvstore.Encode(identityKey(stranger), &keyspacev1.Identity{Number: uint32(stranger), Labels: []string{"k8s:app=web", "mesh:cluster=east"}})
		if err != nil {
			t.Fatal(err)
		}
		kv := &readKeyspace{has: map[string][]byte{identityKey(stranger).String(): value}}
		u, drop := asker(t, kv)
		drop(stranger)
		if !u.a.view.knows(stranger) {
			t.Fatal("it is not known")
		}
		time.Sleep(10 * time.Second)
		drop(stranger)
		if len(kv.all) != 1 {
			t.Errorf("%d reads", len(kv.all))
		}
	})
}

// However many identities packets claim, no more than 100 of them are read in a
// second, and each once.
func TestUnknownIdentitiesAreAskedForSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const all = askBacklog
		kv := &readKeyspace{}
		u, _ := asker(t, kv)
		for i := range identity.Number(all) {
			u.seen(datapath.Event{SourceID: stranger + i})
		}
		time.Sleep(all*askEvery + time.Second)
		synctest.Wait()
		if len(kv.all) != all || len(kv.reads) != all {
			t.Fatalf("%d reads of %d identities, want %d", len(kv.all), len(kv.reads), all)
		}
		var twice []string
		for key, reads := range kv.reads {
			if len(reads) > 1 || !strings.Contains(key, "state/east/") {
				twice = append(twice, fmt.Sprint(key, reads))
			}
		}
		for i, at := range kv.all {
			if i >= 100 && at.Sub(kv.all[i-100]) < time.Second {
				t.Fatalf("101 reads within %s", at.Sub(kv.all[i-100]))
			}
		}
		if len(twice) > 0 {
			t.Errorf("read twice, or of another cluster: %v", twice)
		}
	})
}
