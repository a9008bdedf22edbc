// SPDX-License-Identifier: Apache-2.0

package allocator_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/collector"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

func halves(e *etcdtest.Etcd, n identity.Number, set labels.Set) (id, byLabels kvstore.Key) {
	return kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIdentity, kvstore.NumberName(uint32(n))),
		kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIdentityLabels, set.Hash())
}

func write(t testing.TB, c kvstore.Client, ops ...kvstore.Op) {
	t.Helper()
	if _, err := c.Txn(t.Context(), nil, ops, nil); err != nil {
		t.Fatal(err)
	}
}

// A record in use that cannot be read any more is rewritten with the number that
// is in use; a number that may be others' by now is left alone.
func TestConfirmRepairsUnreadableRecords(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	junk := []byte("\xff\xffjunk")
	for name, c := range map[string]struct {
		id, byLabels, noRef bool
		moves               int
	}{
		"number":                   {id: true},
		"labels":                   {byLabels: true},
		"both":                     {id: true, byLabels: true},
		"number without reference": {id: true, noRef: true},
		"both without reference":   {id: true, byLabels: true, noRef: true, moves: 1},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, e, "n1", last)
			set := setOf(e, name)
			number := allocate(t, n, set)
			id, byLabels := halves(e, number, set)
			if c.id {
				write(t, api, kvstore.Put(id.String(), junk))
			}
			if c.byLabels {
				write(t, api, kvstore.Put(byLabels.String(), junk))
			}
			if c.noRef {
				write(t, api, kvstore.Delete(kvstore.NewKey(kvstore.Local, e.Cluster, kvstore.KindRef, kvstore.NumberName(uint32(number)), "n1").String()))
			}
			moves, err := n.Confirm(t.Context())
			if err != nil || len(moves) != c.moves {
				t.Fatalf("moves %v, %v; want %d", moves, err, c.moves)
			}
			if c.moves > 0 {
				number = moves[0].New
				id, _ = halves(e, number, set)
			}
			for _, k := range []kvstore.Key{id, byLabels} {
				kv, _, err := api.Get(t.Context(), k.String())
				if err != nil || kv == nil {
					t.Fatalf("%s: %v, %v", k, kv, err)
				}
				m, err := kvstore.Decode(k, kv.Value)
				if err != nil {
					t.Fatalf("not repaired: %v", err)
				}
				if r, ok := m.(*keyspacev1.IdentityRef); ok && identity.Number(r.GetNumber()) != number {
					t.Errorf("the labels name %d, want %d", r.GetNumber(), number)
				}
			}
			if err := n.Release(t.Context(), set); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Damage of what is in use is noticed once, and nothing else is.
func TestConcerned(t *testing.T) {
	e := etcdtest.Start(t)
	n := newNode(t, e, "n1", last)
	set, other := setOf(e, "web"), setOf(e, "db")
	number := allocate(t, n, set)
	id, byLabels := halves(e, number, set)
	otherID, otherLabels := halves(e, number+1, other)
	change := func(k kvstore.Key, m proto.Message) store.Batch {
		return store.Batch{Changes: []store.Change{{Key: k, Record: m, Deleted: m == nil}}}
	}
	abroad := byLabels
	abroad.Cluster = "elsewhere"
	for name, c := range map[string]struct {
		b    store.Batch
		want bool
	}{
		"nothing":              {store.Batch{}, false},
		"its own number":       {change(id, &keyspacev1.Identity{Number: uint32(number), Labels: set.Strings()}), false},
		"its own labels":       {change(byLabels, &keyspacev1.IdentityRef{Number: uint32(number)}), false},
		"another's":            {change(otherID, &keyspacev1.Identity{Number: uint32(number) + 1, Labels: other.Strings()}), false},
		"another's goes":       {change(otherLabels, nil), false},
		"another cluster's":    {change(abroad, nil), false},
		"another's unreadable": {store.Batch{Unreadable: []store.Unreadable{{Key: otherID}, {Key: otherLabels}}}, false},
		"other labels":         {change(id, &keyspacev1.Identity{Number: uint32(number), Labels: other.Strings()}), true},
		"another number":       {change(byLabels, &keyspacev1.IdentityRef{Number: uint32(number) + 1}), true},
		"number goes":          {change(id, nil), true},
		"labels go":            {change(byLabels, nil), true},
		"number unreadable":    {store.Batch{Unreadable: []store.Unreadable{{Key: id}}}, true},
		"labels unreadable":    {store.Batch{Unreadable: []store.Unreadable{{Key: byLabels}}}, true},
	} {
		n.Concerned(store.Batch{})
		if got := n.Concerned(c.b); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		if len(c.b.Unreadable) > 0 && n.Concerned(c.b) {
			t.Errorf("%s: told twice", name)
		}
	}
}

// A reference that somebody else removed is noticed and put back; that of a number
// that this node itself let go is not, however late that is heard of.
func TestUnreferenced(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	n := newNode(t, e, "n1", last)
	var mu sync.Mutex
	var heard []store.Batch
	r, err := store.NewReader(store.ReaderConfig{
		Client: api, Prefix: kvstore.Prefix(kvstore.Local, e.Cluster), Apply: func(b store.Batch) {
			mu.Lock()
			defer mu.Unlock()
			heard = append(heard, b)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { _ = r.Run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
	ref := func(num identity.Number, node string) string {
		return kvstore.NewKey(kvstore.Local, e.Cluster, kvstore.KindRef, kvstore.NumberName(uint32(num)), node).String()
	}
	noticed := func() (times int) {
		t.Helper()
		_, rev, err := api.Get(t.Context(), ref(1, "n1"))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.WaitRevision(t.Context(), rev); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, b := range heard {
			if n.Unreferenced(b) {
				times++
			}
		}
		heard = nil
		return times
	}
	web, db := setOf(e, "web"), setOf(e, "db")
	number := allocate(t, n, web)
	write(t, api, kvstore.Put(ref(number, "n2"), nil))
	write(t, api, kvstore.Delete(ref(number, "n2")))
	if noticed() != 0 {
		t.Error("another node's reference is taken for its own")
	}
	allocate(t, n, db)
	if err := n.Release(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	allocate(t, n, db) // before it hears that the reference was removed
	if noticed() != 0 {
		t.Error("what it released is taken for lost")
	}
	write(t, api, kvstore.Delete(ref(number, "n1")))
	if noticed() != 1 {
		t.Fatal("its reference is gone, and it does not notice")
	}
	if moves, err := n.Confirm(t.Context()); err != nil || len(moves) != 0 || len(keys(t, api, ref(number, "n1"))) != 1 {
		t.Fatalf("not put back: %v, %v", moves, err)
	}
	if noticed() != 0 {
		t.Error("noticed what it has put back")
	}
	// A listing that misses it tells no revision of its own.
	k, err := kvstore.ParseKey(ref(number, "n1"))
	if err != nil {
		t.Fatal(err)
	}
	gone := store.Batch{Changes: []store.Change{{Key: k, KV: kvstore.KV{Key: k.String()}, Deleted: true}}, Revision: 1}
	if n.Unreferenced(gone) {
		t.Error("a listing from before it was put counts")
	}
	if gone.Revision = 1 << 40; !n.Unreferenced(gone) {
		t.Error("a listing that misses it does not count")
	}
}

// Nodes repair the same records while the leader collects what is unused: no
// number in use is lost, none is given twice, and all records can be read in the
// end.
func TestRepairRacesCollection(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	gc, err := collector.New(collector.Config{
		Cluster: e.Cluster, First: first, Last: last, Client: api, Gate: func(context.Context) (collector.Gate, error) { return collector.Gate{}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	nodes := []*node{newNode(t, e, "n1", last), newNode(t, e, "n2", last)}
	var sets []labels.Set
	for i := range 4 {
		sets = append(sets, setOf(e, fmt.Sprint("s", i)))
		for _, n := range nodes {
			allocate(t, n, sets[i])
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			_, _ = gc.Pass(ctx)
		}
	})
	for round := range 30 {
		for i, set := range sets {
			for number, s := range nodes[0].InUse() {
				if s.Hash() != set.Hash() {
					continue
				}
				id, byLabels := halves(e, number, set)
				if (round+i)%3 != 0 {
					write(t, api, kvstore.Put(id.String(), []byte("\xff")))
				}
				if (round+i)%3 != 1 {
					write(t, api, kvstore.Put(byLabels.String(), []byte("\xff")))
				}
			}
		}
		var both sync.WaitGroup
		for _, n := range nodes {
			both.Go(func() {
				if moves, err := n.Confirm(t.Context()); err != nil || len(moves) != 0 {
					t.Errorf("round %d: moves %v, %v", round, moves, err)
				}
			})
		}
		both.Wait()
	}
	stop()
	wg.Wait()
	s, err := collector.Look(t.Context(), api, e.Cluster)
	if err != nil || len(s.IDs) != len(sets) {
		t.Fatalf("%d numbers, want %d; %v", len(s.IDs), len(sets), err)
	}
	for number, set := range nodes[0].InUse() {
		if got := s.IDs[number].Labels; got.Hash() != set.Hash() || len(s.Nodes[number]) != 2 {
			t.Errorf("number %d: labels %s of nodes %v, want %s of both", number, got, s.Nodes[number], set)
		}
		if other, ok := nodes[1].InUse()[number]; !ok || other.Hash() != set.Hash() {
			t.Errorf("the nodes disagree on number %d", number)
		}
	}
}
