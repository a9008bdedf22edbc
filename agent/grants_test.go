// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

func ipOf(cluster, ip string, number uint32) store.Change {
	k := kvstore.NewKey(kvstore.State, cluster, kvstore.KindIP, ip)
	return store.Change{Key: k, KV: kvstore.KV{Key: k.String(), ModRevision: 1}, Record: &keyspacev1.IPEntry{Prefix: ip, Identity: number, Node: "n"}}
}

func admitted(cluster string, id uint32, pods ...string) store.Change {
	k := kvstore.NewKey(kvstore.Local, "east", kvstore.KindPeerView, cluster)
	return store.Change{Key: k, KV: kvstore.KV{Key: k.String()}, Record: &keyspacev1.PeerView{Peer: cluster, ClusterId: id, PodCidrs: pods}}
}

func without(c store.Change) store.Change {
	c.Deleted, c.Record = true, nil
	return c
}

// In a shared etcd another cluster may write what it likes below its own
// directory. Only what it was granted reaches the tables.
func TestGrantsJudgeOtherClusters(t *testing.T) {
	space, err := identity.NewSpace(8)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	refused := map[string]int{}
	g := newGrants("east", space, slog.New(slog.DiscardHandler), func(b store.Batch) {
		for _, c := range b.Changes {
			seen[c.Key.Cluster+" "+c.Key.Names[0]] = !c.Deleted
			if c.Deleted {
				delete(seen, c.Key.Cluster+" "+c.Key.Names[0])
			}
		}
	}, func(reason ...string) { refused[reason[0]]++ })
	batch := func(cs ...store.Change) store.Batch { return store.Batch{Changes: cs} }
	expect := func(step string, want ...string) {
		t.Helper()
		if got := slices.Sorted(maps.Keys(seen)); strings.Join(got, ",") != strings.Join(want, ",") {
			t.Errorf("%s: %q, want %q", step, got, want)
		}
	}
	const west = 2 << 16
	good, stolen := ipOf("west", "10.2.0.7/32", west+5), ipOf("west", "10.1.0.7/32", west+5)
	g.state(batch(ipOf("east", "10.1.0.1/32", 1<<16+1), good, stolen, ipOf("west", "10.2.0.8/32", 1<<16+1)))
	expect("before west is admitted", "east 10.1.0.1/32")
	if len(refused) != 0 {
		t.Errorf("counted before a grant was known: %v", refused)
	}
	g.local(batch(admitted("west", 2, "10.2.0.0/16")))
	expect("admitted: another's address and another's number stay out", "east 10.1.0.1/32", "west 10.2.0.7/32")
	if refused[refusedGrant] != 2 || len(refused) != 1 {
		t.Errorf("counted %v, want 2 records outside of the grant", refused)
	}
	lie := proto.CloneOf(good.Record.(*keyspacev1.IPEntry))
	lie.Identity = 1<<16 + 1
	bad := good
	bad.Record = lie
	g.state(batch(bad))
	expect("a lie keeps the last good record", "east 10.1.0.1/32", "west 10.2.0.7/32")
	g.state(batch(good, ipOf("west", "10.3.0.1/32", west+5), ipOf("north", "10.3.0.2/32", 3<<16+1)))
	expect("outside of the grant", "east 10.1.0.1/32", "west 10.2.0.7/32")
	g.state(batch(without(ipOf("west", "10.3.0.1/32", 0))))
	g.local(batch(admitted("west", 2, "10.2.0.0/16", "10.3.0.0/16")))
	expect("what is gone does not come back with a wider grant", "east 10.1.0.1/32", "west 10.2.0.7/32")
	g.state(batch(ipOf("west", "10.3.0.9/32", west+5)))
	expect("a wider grant", "east 10.1.0.1/32", "west 10.2.0.7/32", "west 10.3.0.9/32")
	g.local(batch(admitted("west", 2, "10.2.0.0/16")))
	expect("a narrower grant takes back what passed", "east 10.1.0.1/32", "west 10.2.0.7/32")
	g.local(batch(admitted("west", 2, "10.2.0.0/16", "10.3.0.0/16")))
	expect("wide again", "east 10.1.0.1/32", "west 10.2.0.7/32", "west 10.3.0.9/32")
	g.state(batch(without(good)))
	expect("a deletion", "east 10.1.0.1/32", "west 10.3.0.9/32")
	g.local(batch(without(admitted("west", 2))))
	g.state(batch(good))
	expect("no longer admitted", "east 10.1.0.1/32", "west 10.3.0.9/32")
}
