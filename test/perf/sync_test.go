// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

const aboutFederation = "one hawser-apiserver process and one etcd process (TLS, synced writes, default settings, no HTTP on its port), remotes played by one generator process over TLS; CPU and memory of each process by its cgroup; all share the machine's CPUs"

// TestPerfFederationSync measures the first sync of remote clusters, with the
// store on tmpfs and on disk, beside a plain filler of the same store.
func TestPerfFederationSync(t *testing.T) {
	if !inside(t) {
		return
	}
	shape := bigWorld("", 0)
	r := newReport(t, "federation-sync", fmt.Sprintf("%s; a remote has %d keys: %d nodes, %d identities (two keys each), %d ips, %d services with a slice of %d backends each",
		aboutFederation, shape.keys(), shape.Nodes, shape.Identities, shape.IPs, shape.Services, shape.Backends))
	for range min(flags.rounds, 3) {
		for _, store := range []storage{onTmpfs, onDisk} {
			t.Run("1 remote, "+string(store), func(t *testing.T) { firstSync(t, r, store, 1) })
			t.Run("4 remotes, "+string(store), func(t *testing.T) { firstSync(t, r, store, 4) })
		}
	}
	r.finish(t)
}

// goals are those of the rows on tmpfs.
func goalOf(store storage, goal string) string {
	if store == onDisk {
		return ""
	}
	return goal
}

func firstSync(t *testing.T, r *report, store storage, count int) {
	c := startCluster(t, nearID, store, hostOf(near()), "")
	g := startGenerator(t)
	worlds := remotes(count, bigWorld("", 0))
	c.join(t, g, worlds)
	keys := count * worlds[0].keys()
	what := fmt.Sprintf("first sync, %d remote", count)
	if count > 1 {
		what += "s"
	}
	what += ", " + string(store)
	goals := map[bool][3]string{true: {"≥ 40000", "≤ 30", ""}, false: {"≥ 60000", "", "< 300"}}[count == 1]

	c.server.sample()
	cpu, data, gen := c.server.seconds(), c.data.seconds(), g.group.seconds()
	start := time.Now()
	done := c.synced(t, worlds)
	g.do(t, order{Op: "connect"})
	took := (<-done).Sub(start).Seconds()
	used := c.server.seconds() - cpu
	r.append(what+": rate", "keys/s", goalOf(store, goals[0]), float64(keys)/took)
	r.append(what+": time", "s", "", took)
	r.append(what+": CPU of the API server, a key", "µs", goalOf(store, goals[1]), used*1e6/float64(keys))
	r.append(what+": CPU of etcd", "s", "", c.data.seconds()-data)
	r.append(what+": CPU of the generator", "s", "", g.group.seconds()-gen)
	time.Sleep(200 * time.Millisecond) // the peak may come last
	r.append(what+": peak memory of the API server", "MiB", goalOf(store, goals[2]), c.server.settle())
	for _, w := range worlds {
		if n := count1(t, c.kv, kvstore.Prefix(kvstore.State, w.Name)); n != w.keys()+1 {
			t.Errorf("%s has %d keys in the mirror, not %d", w.Name, n, w.keys()+1)
		}
	}
	if count == 1 {
		r.append("plain filler, 128 puts a transaction, one after the other, "+string(store), "keys/s", "a limit to come near", fill(t, c.kv, bigWorld("filler-a", 201), 1))
		r.append("plain filler, 128 puts a transaction, four at a time, "+string(store), "keys/s", "a limit to come near", fill(t, c.kv, bigWorld("filler-b", 202), 4))
	}
}

// join has the generator join as these worlds.
func (c *cluster) join(t *testing.T, g *generator, worlds []world) {
	t.Helper()
	tokens, version := c.invite(t, worlds)
	g.do(t, order{Op: "join", Worlds: worlds, Tokens: tokens, Version: version})
}

// synced tells when the markers of all kinds say that all of the worlds are
// here.
func (c *cluster) synced(t *testing.T, worlds []world) <-chan time.Time {
	t.Helper()
	done := make(chan time.Time, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 4*within)
	missing := map[string]bool{}
	for _, w := range worlds {
		for _, k := range kvstore.PublicKinds {
			missing[kvstore.NewKey(kvstore.Local, c.Name, kvstore.KindSynced, w.Name, string(k)).String()] = true
		}
	}
	rev := c.revision(t)
	go func() { // ends with the context
		defer cancel()
		err := c.kv.Watch(ctx, kvstore.KindPrefix(kvstore.Local, c.Name, kvstore.KindSynced), rev+1, func(b kvstore.WatchBatch) error {
			for _, e := range b.Events {
				var m keyspacev1.Synced
				if proto.Unmarshal(e.Value, &m) == nil && m.GetState() == keyspacev1.Synced_STATE_COMPLETE {
					delete(missing, e.Key)
				}
			}
			if len(missing) == 0 {
				done <- time.Now()
				cancel()
			}
			return nil
		})
		if len(missing) > 0 {
			t.Errorf("first sync: %v: %d markers are missing", err, len(missing))
			close(done)
		}
	}()
	return done
}

// count1 counts keys, page by page.
func count1(t *testing.T, kv *etcd.Client, prefix string) (n int) {
	t.Helper()
	for after := ""; ; {
		p, err := kv.List(t.Context(), prefix, after, 5000, 0)
		if err != nil {
			t.Fatal(err)
		}
		if n += len(p.KVs); !p.More {
			return n
		}
		after = p.KVs[len(p.KVs)-1].Key
	}
}

// fill writes all records of a world and returns the rate. Encoding them is not
// in it.
func fill(t *testing.T, kv *etcd.Client, w world, parallel int) float64 {
	t.Helper()
	var txns [][]kvstore.Op
	n := 0
	err := w.each(func(k kvstore.Key, m proto.Message) error {
		value, err := kvstore.Encode(k, m)
		if n%kvstore.MaxTxnOps == 0 {
			txns = append(txns, nil)
		}
		n++
		last := &txns[len(txns)-1]
		*last = append(*last, kvstore.Put(k.String(), value))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	var g errgroup.Group
	g.SetLimit(parallel)
	for _, ops := range txns {
		g.Go(func() error {
			_, err := kv.Txn(t.Context(), nil, ops, nil)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return float64(n) / time.Since(start).Seconds()
}

// peerStatus is how the API server sees a peer.
func (c *cluster) peerStatus(t *testing.T, name string) *hawserv1.PeerStatus {
	t.Helper()
	r, err := c.mesh(t).MeshStatus(t.Context(), &hawserv1.MeshStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.GetPeers() {
		if p.GetName() == name {
			return p
		}
	}
	t.Fatalf("no peer %s", name)
	return nil
}

// peerWith makes two real clusters peers, and waits until they are connected.
func (c *cluster) peerWith(t *testing.T, o *cluster) {
	t.Helper()
	tokens, _ := c.invite(t, []world{o.world})
	if r, err := o.mesh(t).Join(t.Context(), &hawserv1.JoinRequest{Token: tokens[0]}); err != nil {
		t.Fatalf("join: %v %v", err, r)
	}
	etcdtest.Eventually(t, within, "the clusters are connected", func() bool {
		p := c.peerStatus(t, o.Name)
		return p.GetState() == "connected" && len(p.GetSyncedKinds()) > 0
	})
}
