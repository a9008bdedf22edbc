// SPDX-License-Identifier: Apache-2.0

package collector_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
)

// history replays every revision of a store and judges each.
type history struct {
	t *testing.T

	ids     map[string]string // number → labels
	byLabel map[string]string // hash → number
	refs    map[string]map[string]bool
	retired map[string]bool
	last    map[string]string // number → labels that it had last
	strict  bool              // nobody but allocators and the collector writes

	retirements, reuses, putBacks int
}

// judge replays what happened in a store up to now.
func judge(t *testing.T, e *etcdtest.Etcd, strict bool) *history {
	t.Helper()
	h := &history{
		t: t, ids: map[string]string{}, byLabel: map[string]string{}, refs: map[string]map[string]bool{},
		retired: map[string]bool{}, last: map[string]string{}, strict: strict,
	}
	kv := e.Client(t, pki.RoleRoot, "") // sees all subtrees in one order
	_, end, err := kv.Get(t.Context(), kvstore.Root)
	if err != nil {
		t.Fatal(err)
	}
	done := errors.New("done")
	err = kv.Watch(t.Context(), kvstore.Root, 2, func(b kvstore.WatchBatch) error {
		for i := 0; i < len(b.Events); {
			j := i
			for j < len(b.Events) && b.Events[j].ModRevision == b.Events[i].ModRevision {
				j++
			}
			h.revision(b.Events[i:j])
			i = j
		}
		if b.Revision >= end {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		t.Fatal(err)
	}
	t.Logf("%d revisions: %d retirements, %d numbers with new labels, %d put back", end, h.retirements, h.reuses, h.putBacks)
	return h
}

func (h *history) fault(rev int64, format string, a ...any) {
	h.t.Errorf("revision %d: %s", rev, fmt.Sprintf(format, a...))
}

// revision takes the events of one transaction.
func (h *history) revision(events []kvstore.Event) {
	rev := events[0].ModRevision
	wasRetired := map[string]bool{}
	for n := range h.retired {
		wasRetired[n] = true
	}
	touched := map[string]bool{}
	for _, ev := range events {
		k, err := kvstore.ParseKey(ev.Key)
		if err != nil {
			h.t.Fatal(err)
		}
		switch k.Kind {
		case kvstore.KindIdentity:
			touched[k.Names[0]] = true
			h.identity(rev, k, ev, wasRetired[k.Names[0]])
		case kvstore.KindIdentityLabels:
			delete(h.byLabel, k.Names[0])
			if !ev.Deleted {
				h.byLabel[k.Names[0]] = kvstore.NumberName(decode[*keyspacev1.IdentityRef](h.t, k, ev).GetNumber())
			}
		case kvstore.KindRef:
			touched[k.Names[0]] = true
			if h.refs[k.Names[0]] == nil {
				h.refs[k.Names[0]] = map[string]bool{}
			}
			delete(h.refs[k.Names[0]], k.Names[1])
			if !ev.Deleted {
				h.refs[k.Names[0]][k.Names[1]] = true
			}
		case kvstore.KindRetired:
			delete(h.retired, k.Names[0])
			if !ev.Deleted {
				h.retired[k.Names[0]] = true
				h.retirements++
			}
		}
	}
	for n := range touched {
		if _, live := h.ids[n]; !live && len(h.refs[n]) > 0 {
			h.fault(rev, "number %s is gone while %v use it", n, h.refs[n])
		}
	}
	h.consistent(rev)
}

func (h *history) identity(rev int64, k kvstore.Key, ev kvstore.Event, retired bool) {
	n := k.Names[0]
	if ev.Deleted {
		delete(h.ids, n)
		return
	}
	now := strings.Join(decode[*keyspacev1.Identity](h.t, k, ev).GetLabels(), ",")
	if was, live := h.ids[n]; live && was != now {
		h.fault(rev, "number %s had %s and got %s", n, was, now)
	}
	last, had := h.last[n]
	switch {
	case had && last != now && retired:
		h.fault(rev, "number %s of %s was given to %s while it was retired", n, last, now)
	case had && last != now:
		h.reuses++
	case retired:
		h.putBacks++
	}
	h.ids[n], h.last[n] = now, now
}

// consistent checks that numbers and labels lead to each other.
func (h *history) consistent(rev int64) {
	if !h.strict {
		return
	}
	if len(h.ids) != len(h.byLabel) {
		h.fault(rev, "%d numbers but %d labels keys", len(h.ids), len(h.byLabel))
	}
	seen := map[string]bool{}
	for hash, n := range h.byLabel {
		if _, live := h.ids[n]; !live || seen[n] {
			h.fault(rev, "labels %s lead to %s, which is not there or has others", hash, n)
		}
		seen[n] = true
	}
}

func decode[T any](t *testing.T, k kvstore.Key, ev kvstore.Event) T {
	t.Helper()
	m, err := kvstore.Decode(k, ev.Value)
	if err != nil {
		t.Fatal(err)
	}
	return m.(T)
}

// holds checks, by the store, that a number stands for labels and is referred to.
func holds(ctx context.Context, kv kvstore.Client, cluster, node string, n uint32, want string) error {
	id := kvstore.NewKey(kvstore.State, cluster, kvstore.KindIdentity, kvstore.NumberName(n))
	ref := kvstore.NewKey(kvstore.Local, cluster, kvstore.KindRef, kvstore.NumberName(n), node).String()
	res, err := kv.Txn(ctx, nil, []kvstore.Op{kvstore.Read(id.String()), kvstore.Read(ref)}, nil)
	if err != nil {
		return err
	}
	if len(res.Gets[0]) == 0 || len(res.Gets[1]) == 0 {
		return fmt.Errorf("number %d in use on %s: %d keys, %d references", n, node, len(res.Gets[0]), len(res.Gets[1]))
	}
	m, err := kvstore.Decode(id, res.Gets[0][0].Value)
	if err != nil {
		return err
	}
	if got := strings.Join(m.(*keyspacev1.Identity).GetLabels(), ","); got != want {
		return fmt.Errorf("number %d in use on %s stands for %s, not %s", n, node, got, want)
	}
	return nil
}
