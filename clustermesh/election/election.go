// SPDX-License-Identifier: Apache-2.0

// Package election gives one API server of a cluster an office at a time: the
// import of a peer, or the cluster's controllers.
//
// Start with Lead, which waits for the office and does its work for as long as
// it is held; Acquire is the step below. An office is a leased key. Whoever
// writes in office compares that key in every transaction (Term.Fence), so that
// one who was replaced without knowing it changes nothing any more.
package election

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/hawser-mesh/hawser/internal/backoff"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	defaultTTL = 5 // seconds
	poll       = 200 * time.Millisecond
	giveBack   = 2 * time.Second
	retryMin   = 100 * time.Millisecond
	retryMax   = 5 * time.Second
)

// ErrLost is why the work of a term was ended: its lease could not be renewed,
// or the key was removed.
var ErrLost = errors.New("another API server may hold the office now")

// Config is an office and who stands for it.
type Config struct {
	Client  kvstore.Client
	Cluster string
	// Office is the name below private/<c>/elections/, in parts.
	Office []string
	// Replica names the API server among those of the cluster; it is the same
	// after a restart, and no two that run at once have the same.
	Replica string
	TTL     int64 // of the lease, seconds; 0 means 5
	// Oust, asked about another's hold (REPLICA/…) now and then, has the office
	// taken from it. Nil: never.
	Oust func(holder string) bool
	Log  *slog.Logger
}

func (c Config) key() string {
	return kvstore.NewKey(kvstore.Private, c.Cluster, kvstore.KindElection, c.Office...).String()
}

func (c Config) name() string { return strings.Join(c.Office, "/") }

// Term is an office held, until it is lost or given back.
type Term struct {
	client kvstore.Client
	key    string
	holder string
	rev    int64
	ttl    time.Duration
	lost   chan struct{} // closed by guard
	cancel context.CancelFunc
}

// Acquire waits for the office until the context ends. What an earlier run of
// the same replica left is taken over at once, another's when its lease has
// ended. The caller must Release the term.
func Acquire(ctx context.Context, cfg Config) (*Term, error) {
	if cfg.TTL == 0 {
		cfg.TTL = defaultTTL
	}
	lctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	lease, ended, err := cfg.Client.Grant(lctx, cfg.TTL)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("stand for %s: %w", cfg.name(), err)
	}
	t := &Term{
		client: cfg.Client, key: cfg.key(), holder: cfg.Replica + "/" + uuid.NewString(),
		ttl: time.Duration(cfg.TTL) * time.Second, lost: make(chan struct{}), cancel: cancel,
	}
	for {
		again, err := t.try(ctx, cfg, lease)
		switch {
		case err == nil && t.rev != 0:
			go t.guard(lctx, ended)
			return t, nil
		case err == nil && again:
			continue
		}
		select {
		case <-time.After(poll):
			continue
		case <-ended:
			err = errors.Join(errors.New("the lease ended"), err)
		case <-ctx.Done():
			err = ctx.Err()
		}
		cancel()
		return nil, fmt.Errorf("stand for %s: %w", cfg.name(), err)
	}
}

// try takes the office if it is free, which sets rev, or clears away what an
// earlier run of the same replica left, or who is to be ousted; then it is worth
// trying again at once.
func (t *Term) try(ctx context.Context, cfg Config, lease kvstore.Lease) (again bool, err error) {
	res, err := t.client.Txn(ctx, []kvstore.Cmp{kvstore.Absent(t.key)},
		[]kvstore.Op{{Kind: kvstore.OpPut, Key: t.key, Value: []byte(t.holder), Lease: lease}},
		[]kvstore.Op{kvstore.Read(t.key)})
	switch {
	case err != nil:
		return false, err
	case res.Succeeded:
		t.rev = res.Revision
		return false, nil
	case len(res.Gets) == 0 || len(res.Gets[0]) == 0:
		return true, nil
	}
	at := res.Gets[0][0]
	switch {
	case string(at.Value) == t.holder: // our Put whose answer was lost
		t.rev = at.CreateRevision
	case strings.HasPrefix(string(at.Value), cfg.Replica+"/") || cfg.Oust != nil && cfg.Oust(string(at.Value)):
		_, err = t.client.Txn(ctx, []kvstore.Cmp{kvstore.AtRevision(t.key, at.ModRevision)}, []kvstore.Op{kvstore.Delete(t.key)}, nil)
		return true, err
	}
	return false, err
}

// Fence is the condition that the office is still held; every transaction of
// the term compares it.
func (t *Term) Fence() []kvstore.Cmp {
	return []kvstore.Cmp{{Key: t.key, Target: kvstore.CmpCreateRev, Rev: t.rev}}
}

// Lost is closed when the lease has ended, and when the key is gone or another's.
func (t *Term) Lost() <-chan struct{} { return t.lost }

// guard closes lost when the term is over, which a Release is, too.
func (t *Term) guard(ctx context.Context, ended <-chan struct{}) {
	defer close(t.lost)
	ctx, cancel := context.WithCancel(ctx)
	taken := make(chan struct{})
	go func() { // ends with ctx
		defer close(taken)
		t.follow(ctx)
	}()
	select {
	case <-ended:
	case <-taken:
	}
	cancel()
	<-taken
}

// follow returns when the key is gone or another's, or the context ends. While the
// store does not answer the lease tells.
func (t *Term) follow(ctx context.Context) {
	wait := backoff.New(retryMin, retryMax)
	for {
		kv, rev, err := t.client.Get(ctx, t.key)
		if err == nil {
			if kv == nil || !t.mine(*kv) {
				return
			}
			err = t.client.Watch(ctx, t.key, rev+1, func(b kvstore.WatchBatch) error {
				wait.Reset()
				for _, ev := range b.Events {
					if ev.Key == t.key && (ev.Deleted || !t.mine(ev.KV)) {
						return ErrLost
					}
				}
				return nil
			})
		}
		if errors.Is(err, ErrLost) || wait.Wait(ctx) != nil {
			return
		}
	}
}

// mine is false of a key of another term, and of ours when somebody wrote over it:
// then it hangs on no lease.
func (t *Term) mine(kv kvstore.KV) bool {
	return kv.CreateRevision == t.rev && string(kv.Value) == t.holder
}

// Held asks the store whether the office is still this term's.
func (t *Term) Held(ctx context.Context) (bool, error) {
	res, err := t.client.Txn(ctx, t.Fence(), nil, nil)
	return res.Succeeded, err
}

// Release gives the office back; if that fails its lease ends by itself.
func (t *Term) Release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveBack)
	defer cancel()
	_, _ = t.client.Txn(ctx, t.Fence(), []kvstore.Op{kvstore.Delete(t.key)}, nil)
	t.cancel()
}

// Lead stands for the office until the context ends and returns nil then. Each
// time it is won, work runs with a context that ends when the term is lost;
// when work returns the office is given back and stood for again, after a pause
// if work failed.
func Lead(ctx context.Context, cfg Config, work func(ctx context.Context, t *Term) error) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	wait := backoff.New(retryMin, retryMax)
	for {
		t, err := Acquire(ctx, cfg)
		if err == nil {
			cfg.Log.Info("leading", "office", cfg.name(), "replica", cfg.Replica)
			began := time.Now()
			err = t.serve(ctx, work)
			if time.Since(began) > retryMax {
				wait.Reset()
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		cfg.Log.Warn("not leading", "office", cfg.name(), "replica", cfg.Replica, "error", err)
		if wait.Wait(ctx) != nil {
			return nil
		}
	}
}

// serve runs work until it returns or the term is lost. That the fence holds it asks
// itself now and then: without it nothing that work writes is taken.
func (t *Term) serve(ctx context.Context, work func(context.Context, *Term) error) error {
	defer t.Release(ctx)
	wctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watching sync.WaitGroup // ends with wctx, which ends with this function
	watching.Go(func() {
		select {
		case <-t.lost:
			cancel(ErrLost)
		case <-wctx.Done():
		}
	})
	watching.Go(func() {
		tick := time.NewTicker(t.ttl)
		defer tick.Stop()
		for {
			select {
			case <-wctx.Done():
				return
			case <-tick.C:
			}
			// A store that does not answer holds this up, and not the end of the lease.
			if held, err := t.Held(wctx); err == nil && !held {
				cancel(ErrLost)
				return
			}
		}
	})
	err := work(wctx, t)
	if cause := context.Cause(wctx); errors.Is(cause, ErrLost) {
		err = cause
	}
	cancel(nil)
	watching.Wait()
	return err
}
