// SPDX-License-Identifier: Apache-2.0

package election_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/clustermesh/election"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
)

func config(t *testing.T, e *etcdtest.Etcd, replica string) election.Config {
	t.Helper()
	return election.Config{Client: e.APIServer(t), Cluster: e.Cluster, Office: []string{"test"}, Replica: replica, TTL: 1}
}

// patient is config for tests in which no lease is to end by itself, however busy
// the machine is.
func patient(t *testing.T, e *etcdtest.Etcd, replica string) election.Config {
	t.Helper()
	c := config(t, e, replica)
	c.TTL = 30
	return c
}

func acquire(t *testing.T, cfg election.Config) *election.Term {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	term, err := election.Acquire(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { term.Release(context.Background()) })
	return term
}

func TestOneAtATime(t *testing.T) {
	e := etcdtest.Start(t)
	first := acquire(t, patient(t, e, "a"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := election.Acquire(ctx, patient(t, e, "b")); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("second candidate while the first is in office: %v", err)
	}
	first.Release(t.Context())
	second := acquire(t, patient(t, e, "b"))
	for term, want := range map[*election.Term]bool{first: false, second: true} {
		if held, err := term.Held(t.Context()); err != nil || held != want {
			t.Errorf("held %v, %v; want %v", held, err, want)
		}
	}
}

func TestRestartedReplicaTakesOverAndFences(t *testing.T) {
	e := etcdtest.Start(t)
	first := acquire(t, patient(t, e, "a"))
	second := acquire(t, patient(t, e, "a")) // as after kill -9
	probe := kvstore.NewKey(kvstore.Private, e.Cluster, kvstore.KindToken, "probe").String()
	for term, want := range map[*election.Term]bool{first: false, second: true} {
		res, err := e.APIServer(t).Txn(t.Context(), term.Fence(), []kvstore.Op{kvstore.Put(probe, nil)}, nil)
		if err != nil || res.Succeeded != want {
			t.Errorf("write in office: %v, %v; want %v", res.Succeeded, err, want)
		}
	}
	first.Release(t.Context()) // must not take the office from its successor
	if held, err := second.Held(t.Context()); err != nil || !held {
		t.Errorf("the release of an old term ended a newer one: %v, %v", held, err)
	}
}

// Replicas come and go; never are two of them able to write.
func TestLeadersTakeTurns(t *testing.T) {
	e := etcdtest.Start(t)
	var inOffice, terms atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 3 {
		cfg := config(t, e, fmt.Sprintf("r%d", i))
		wg.Go(func() {
			err := election.Lead(ctx, cfg, func(context.Context, *election.Term) error {
				if n := inOffice.Add(1); n != 1 {
					t.Errorf("%d leaders", n)
				}
				defer inOffice.Add(-1)
				terms.Add(1)
				time.Sleep(10 * time.Millisecond) // the office is held this long
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	etcdtest.Eventually(t, 20*time.Second, "five terms", func() bool { return terms.Load() >= 5 })
	cancel()
	wg.Wait()
}

// lead stands for an office until stop is called, and has begun to work in it.
func lead(t *testing.T, cfg election.Config) (began chan struct{}, ended chan error, stop func()) {
	t.Helper()
	began, ended = make(chan struct{}, 9), make(chan error, 9)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = election.Lead(ctx, cfg, func(ctx context.Context, _ *election.Term) error {
			began <- struct{}{}
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return nil
		})
	}()
	<-began
	return began, ended, func() {
		cancel()
		<-done
	}
}

func TestWorkEndsWithTheLease(t *testing.T) {
	e := etcdtest.Start(t)
	p := e.Proxy(t)
	cfg := config(t, e, "a")
	cfg.Client = e.ClientAt(t, p.Endpoint(), "apiserver", "")
	began, ended, stop := lead(t, cfg)
	p.Cut()
	select {
	case err := <-ended:
		if !errors.Is(err, election.ErrLost) {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("still leading without a lease")
	}
	// Another replica is not held up by the one that was cut off.
	acquire(t, config(t, e, "b")).Release(t.Context())
	p.Heal()
	select {
	case <-began:
	case <-time.After(20 * time.Second):
		t.Error("does not stand again once it can")
	}
	stop()
}

// Who holds an office knows when somebody takes its key away or writes over it,
// long before its lease would end, and stands for it again.
func TestTermEndsWithItsKey(t *testing.T) {
	e := etcdtest.Start(t)
	key := kvstore.NewKey(kvstore.Private, e.Cluster, kvstore.KindElection, "test").String()
	for what, op := range map[string]kvstore.Op{"deleted": kvstore.Delete(key), "another's": kvstore.Put(key, []byte("z/1"))} {
		term := acquire(t, patient(t, e, "a"))
		select {
		case <-term.Lost():
			t.Fatalf("%s: lost while the key is as it was", what)
		default:
		}
		if _, err := e.APIServer(t).Txn(t.Context(), nil, []kvstore.Op{op}, nil); err != nil {
			t.Fatal(err)
		}
		select {
		case <-term.Lost():
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the term goes on", what)
		}
		term.Release(t.Context())
	}
}

// deaf is a store whose watches tell nothing.
type deaf struct{ kvstore.Client }

func (deaf) Watch(ctx context.Context, _ string, _ int64, _ func(kvstore.WatchBatch) error) error {
	<-ctx.Done()
	return ctx.Err()
}

// Nobody may be out of office in silence: work ends, too, when only the fence
// tells, and begins again.
func TestWorkEndsWithTheFence(t *testing.T) {
	e := etcdtest.Start(t)
	for what, c := range map[string]kvstore.Client{"told": e.APIServer(t), "not told": deaf{e.APIServer(t)}} {
		cfg := config(t, e, "a")
		cfg.Client = c
		cfg.TTL = 2
		began, ended, stop := lead(t, cfg)
		key := kvstore.NewKey(kvstore.Private, e.Cluster, kvstore.KindElection, "test").String()
		if _, err := e.APIServer(t).Txn(t.Context(), nil, []kvstore.Op{kvstore.Delete(key)}, nil); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if !errors.Is(err, election.ErrLost) {
				t.Errorf("%s: ended with %v", what, err)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s: still leading without the key", what)
		}
		select {
		case <-began:
		case <-time.After(20 * time.Second):
			t.Errorf("%s: nobody leads", what)
		}
		stop()
	}
}
