// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/nsthread"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	outage = 330 * time.Second
	// While it lasts so many addresses are written, ten a second; some twice.
	outageWrites    = 3300
	outageAddresses = 3000
)

// TestPerfFederationRestart measures how soon a mirror that was killed goes on.
func TestPerfFederationRestart(t *testing.T) {
	if !inside(t) {
		return
	}
	r := newReport(t, "federation-restart", aboutFederation+"; from the start of the new process, the old one killed by SIGKILL, until it has resumed the stream of a peer with a large cluster")
	for range min(flags.rounds, 3) {
		for _, store := range []storage{onTmpfs, onDisk, embedded} {
			t.Run("generator, "+string(store), func(t *testing.T) {
				c := startCluster(t, nearID, store, hostOf(near()), "")
				w := remotes(1, bigWorld("", 0))
				c.syncWith(t, w)
				restart(t, r, c, w[0], "generator, "+string(store))
			})
			t.Run("real source, "+string(store), func(t *testing.T) {
				c := startCluster(t, nearID, store, hostOf(near()), "")
				o := startCluster(t, farID, store, secondHost(), "")
				fill(t, o.kv, o.world, 2)
				c.peerWith(t, o)
				restart(t, r, c, o.world, "real source, "+string(store))
			})
		}
	}
	r.finish(t)
}

func restart(t *testing.T, r *report, c *cluster, w world, what string) {
	t.Helper()
	resumed := func() bool {
		p := c.peerStatus(t, w.Name)
		return p.GetState() == "connected" && p.GetResumesReceived() > 0
	}
	time.Sleep(time.Second) // for the position and the view of the peer to be stored
	before := c.revision(t)
	c.kill()
	cpu := c.server.seconds()
	start := time.Now()
	c.start(t)
	answers := time.Since(start).Seconds()
	etcdtest.Eventually(t, within, "the stream is resumed", resumed)
	r.append("restart after SIGKILL until resumed, "+what, "s", "< 2", time.Since(start).Seconds())
	r.append("restart after SIGKILL until the API answers, "+what, "s", "", answers)
	r.append("restart after SIGKILL, CPU of the API server, "+what, "s", "", c.server.seconds()-cpu)
	if p := c.peerStatus(t, w.Name); p.GetSnapshotsReceived() > 0 || p.GetKeys() < uint64(w.keys()) {
		t.Errorf("%d snapshots, %d keys: not what was there before", p.GetSnapshotsReceived(), p.GetKeys())
	}
	time.Sleep(time.Second) // what is written late counts, too
	r.append("restart after SIGKILL, keys of the mirror that were written again, "+what, "keys", "0", float64(writtenSince(t, c, w, before)))
	r.append("restart after SIGKILL, etcd revisions in all, "+what, "revisions", "", float64(c.revision(t)-before))
}

// writtenSince counts the keys of a mirror that were written after a revision.
func writtenSince(t *testing.T, c *cluster, w world, rev int64) (n int) {
	t.Helper()
	prefix := kvstore.Prefix(kvstore.State, w.Name)
	for after := ""; ; {
		p, err := c.kv.List(t.Context(), prefix, after, 5000, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range p.KVs {
			if after = kv.Key; kv.ModRevision > rev {
				n++
			}
		}
		if !p.More {
			return n
		}
	}
}

// TestPerfFederationOutage measures how soon a peer is level again after 330 s
// in which the network lost every packet, and what crosses then.
func TestPerfFederationOutage(t *testing.T) {
	if !inside(t) {
		return
	}
	r := newReport(t, "federation-outage", fmt.Sprintf("two pairs of API server processes (etcd on tmpfs and on disk), with an etcd process each, a router between them that loses all packets for %s while %d addresses of a large cluster are written in each pair, %d of them twice",
		outage, outageAddresses, outageWrites-outageAddresses))
	var pairs []*pair
	for n, store := range []storage{onTmpfs, onDisk} {
		pairs = append(pairs, startPair(t, store, uint16(federationPort+100*n)))
	}
	cut(t, true)
	began := time.Now()
	for n := range outageWrites {
		for _, p := range pairs {
			p.write(t, n)
		}
		time.Sleep(time.Until(began.Add(time.Duration(n) * 100 * time.Millisecond)))
	}
	time.Sleep(time.Until(began.Add(outage)))
	for _, p := range pairs {
		if st := p.c.peerStatus(t, p.o.Name); st.GetState() == "connected" || st.GetChangesReceived() != p.before.GetChangesReceived() {
			t.Fatalf("the network is cut, but the peer is %s", st.GetState())
		}
	}
	cut(t, false)
	healed := time.Now()
	etcdtest.Eventually(t, within, "the last write is in the local etcd", func() bool {
		missing := 0
		for _, p := range pairs {
			if p.took == 0 && p.level(t) {
				p.took = time.Since(healed)
			}
			if p.took == 0 {
				missing++
			}
		}
		return missing == 0
	})
	for _, p := range pairs {
		p.tell(t, r)
	}
	r.finish(t)
}

// pair is two real clusters that are peers, with the router between them.
type pair struct {
	store  storage
	c, o   *cluster
	before *hawserv1.PeerStatus
	rev    int64 // of c's etcd, before the outage
	last   int64 // when the last address of o was written, Unix ns
	took   time.Duration
}

func startPair(t *testing.T, store storage, port uint16) *pair {
	t.Helper()
	p := &pair{
		store: store, c: startClusterAt(t, nearID, store, netip.AddrPortFrom(hostOf(near()), port), ""),
		o: startClusterAt(t, farID, store, netip.AddrPortFrom(hostOf(far()), port), insidePath("far")),
	}
	fill(t, p.o.kv, p.o.world, 2)
	p.c.peerWith(t, p.o)
	etcdtest.Eventually(t, within, "the mirror is level", func() bool { return p.c.peerStatus(t, p.o.Name).GetKeys() > uint64(p.o.keys()) })
	p.before, p.rev = p.c.peerStatus(t, p.o.Name), p.c.revision(t)
	return p
}

func (p *pair) write(t *testing.T, n int) {
	t.Helper()
	p.last = time.Now().UnixNano()
	k, m := p.o.ip(n%outageAddresses, n+1, p.last)
	value, err := kvstore.Encode(k, m)
	if err == nil {
		_, err = p.o.kv.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(k.String(), value)}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// level reports whether the last write has arrived.
func (p *pair) level(t *testing.T) bool {
	t.Helper()
	k, _ := p.o.ip((outageWrites-1)%outageAddresses, 0, 0)
	kv, _, err := p.c.kv.Get(t.Context(), k.String())
	var ip keyspacev1.IPEntry
	return err == nil && kv != nil && proto.Unmarshal(kv.Value, &ip) == nil && ip.GetUpdatedAt() == p.last
}

func (p *pair) tell(t *testing.T, r *report) {
	t.Helper()
	written := func() int { return writtenSince(t, p.c, p.o.world, p.rev) }
	etcdtest.Eventually(t, within, "all writes are in the local etcd", func() bool { return written() >= outageAddresses })
	after := p.c.peerStatus(t, p.o.Name)
	add := func(name, unit, goal string, v float64) {
		r.append(name+", "+string(p.store), unit, goalOf(p.store, goal), v)
	}
	add("reconnect after an outage of 330 s, until level", "s", "< 6", p.took.Seconds())
	add("changes that crossed then", "changes", fmt.Sprintf("≤ %d", outageWrites), float64(after.GetChangesReceived()-p.before.GetChangesReceived()))
	add("keys of the mirror that were written then", "keys", fmt.Sprintf("%d", outageAddresses), float64(written()))
	add("snapshots then", "snapshots", "0", float64(after.GetSnapshotsReceived()-p.before.GetSnapshotsReceived()))
}

// forwardFrom makes a port of a namespace's loopback lead to the same one of
// the test's, until the test ends.
func forwardFrom(t *testing.T, netns, address string) {
	t.Helper()
	var l net.Listener
	err := nsthread.InNetns(netns, func() (err error) {
		l, err = net.Listen("tcp", address) //nolint:noctx // loopback
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the listener
		for {
			a, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			b, err := net.Dial("tcp", address) //nolint:noctx // loopback
			if err != nil {
				_ = a.Close()
				continue
			}
			var once sync.Once
			both := func() { _ = a.Close(); _ = b.Close() }
			go func() { _, _ = io.Copy(a, b); once.Do(both) }()
			go func() { _, _ = io.Copy(b, a); once.Do(both) }()
		}
	}()
}
