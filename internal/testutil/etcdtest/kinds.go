// SPDX-License-Identifier: Apache-2.0

package etcdtest

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/ports"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// Kind is a way in which a cluster's etcd can run.
type Kind string

// Kinds of etcd.
const (
	Embedded Kind = "embedded-1" // inside one process
	Members  Kind = "embedded-3" // inside three
	External Kind = "external"   // a process of its own, with its own CA
)

// Each runs a test on every kind of etcd, or on the one that the environment asks
// for.
func Each(t *testing.T, test func(*testing.T, *Etcd)) {
	t.Helper()
	beside(t)
	kinds := []Kind{Embedded, Members, External}
	if k := Kind(os.Getenv(kindVar)); slices.Contains(kinds, k) {
		kinds = []Kind{k}
	}
	for _, k := range kinds {
		t.Run(string(k), func(t *testing.T) { test(t, StartKind(t, k)) })
	}
}

// StartKind runs an etcd of a kind until the test ends.
func StartKind(tb testing.TB, k Kind) *Etcd {
	tb.Helper()
	switch k {
	case Members:
		return startMembers(tb)
	case External:
		return startExternal(tb)
	}
	return startEmbedded(tb)
}

// base is an Etcd with its CA and the files of one server on loopback.
func base(tb testing.TB, k Kind) *Etcd {
	tb.Helper()
	e := &Etcd{Cluster: RandomCluster(), Kind: k, dir: scratch(tb)}
	var err error
	if e.CA, err = pki.NewCA(e.Cluster, time.Now()); err != nil {
		tb.Fatal(err)
	}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	e.Config = etcd.ServerConfig{
		Cluster: e.Cluster, DataDir: filepath.Join(e.dir, "etcd"), UnsafeNoFsync: true, Log: slog.New(slog.DiscardHandler),
		Listen: ports.Free(tb),
		TLS:    e.files(tb, pki.Request{Role: pki.RoleAPIServer, IPs: []netip.Addr{loopback}}),
		Root:   e.files(tb, pki.Request{Role: pki.RoleRoot}),
	}
	return e
}

func (e *Etcd) files(tb testing.TB, r pki.Request) pki.Files {
	tb.Helper()
	f, err := e.Files(r)
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

func startMembers(tb testing.TB) *Etcd {
	tb.Helper()
	beside(tb)
	e := base(tb, Members)
	loopback := e.Config.Listen.Addr()
	peer := e.files(tb, pki.Request{Role: pki.RoleEtcdPeer, IPs: []netip.Addr{loopback}})
	var members []etcd.Member
	for i := range 3 {
		members = append(members, etcd.Member{
			Name:   fmt.Sprintf("r%d", i),
			Client: ports.Free(tb), Peer: ports.Free(tb),
		})
	}
	for _, m := range members {
		c := e.Config
		c.Name, c.Members, c.Peer, c.Listen = m.Name, members, peer, m.Client
		c.DataDir = filepath.Join(e.dir, m.Name)
		c.StartTimeout = time.Minute
		c.Heartbeat = 50 * time.Millisecond // the suites start and stop many
		e.Configs = append(e.Configs, c)
	}
	e.Servers = make([]*etcd.Server, len(members))
	e.Config = e.Configs[0]
	tb.Cleanup(e.Stop) // also of those that start while another fails to
	e.Restart(tb)
	return e
}

// Endpoints are the addresses of all members.
func (e *Etcd) Endpoints() []string {
	if len(e.Configs) == 0 {
		return []string{e.Config.Listen.String()}
	}
	var out []string
	for _, c := range e.Configs {
		out = append(out, c.Listen.String())
	}
	return out
}

// Root connects as etcd's administrator until the test ends.
func (e *Etcd) Root(tb testing.TB) *etcd.Client {
	tb.Helper()
	return e.Client(tb, pki.RoleRoot, "")
}

// Stop closes all members and keeps their data; Restart brings them back at the
// same addresses.
func (e *Etcd) Stop() {
	if e.process != nil {
		e.process.stop()
	}
	// The leader last: etcd's leader hands over before it goes, and waits
	// seconds for a successor that is going, too.
	var leaders []*etcd.Server
	var done sync.WaitGroup
	for _, s := range e.Servers {
		switch {
		case s == nil:
		case s.Leads():
			leaders = append(leaders, s)
		default:
			done.Go(s.Close)
		}
	}
	done.Wait()
	for _, s := range leaders {
		s.Close()
	}
}

// Restart starts what is stopped on what is in the data directories.
func (e *Etcd) Restart(tb testing.TB) {
	tb.Helper()
	if e.process != nil {
		e.process.start(tb)
		return
	}
	var g errgroup.Group
	for i := range e.Servers {
		g.Go(func() (err error) {
			e.Servers[i], err = etcd.Start(tb.Context(), e.Configs[i])
			return err
		})
	}
	if err := g.Wait(); err != nil {
		tb.Fatalf("start etcd: %v", err)
	}
	e.Server = e.Servers[0]
}

// Wipe removes the data of a stopped etcd.
func (e *Etcd) Wipe(tb testing.TB) {
	tb.Helper()
	dirs := []string{e.Config.DataDir}
	for _, c := range e.Configs {
		dirs = append(dirs, c.DataDir)
	}
	for _, d := range dirs {
		if err := os.RemoveAll(d); err != nil {
			tb.Fatalf("wipe etcd: %v", err)
		}
	}
}

// Compact forgets the history before rev.
func (e *Etcd) Compact(tb testing.TB, rev int64) {
	tb.Helper()
	if err := e.Root(tb).Compact(tb.Context(), rev); err != nil {
		tb.Fatal(err)
	}
}

// Leader is the index of the leading member.
func (e *Etcd) Leader(tb testing.TB) int {
	tb.Helper()
	at := -1
	Eventually(tb, 20*time.Second, "there is a leader", func() bool {
		for i, s := range e.Servers {
			if s.Leads() {
				at = i
			}
		}
		return at >= 0
	})
	return at
}

// Snapshot writes a snapshot to a file of the test's.
func (e *Etcd) Snapshot(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(e.dir, "backup-"+RandomCluster())
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if _, err := e.ClientAt(tb, e.Endpoints()[0], pki.RoleRoot, "").Snapshot(tb.Context(), f); err != nil {
		tb.Fatal(err)
	}
	return path
}

// Restore puts the data of a snapshot in place of a stopped etcd's and starts
// it, as an operator would. prepare sees the data before it is served.
func (e *Etcd) Restore(tb testing.TB, path string, prepare func(context.Context, kvstore.Client) error) {
	tb.Helper()
	first := e.Config
	if len(e.Configs) > 0 {
		first = e.Configs[0]
	}
	_, err := etcd.Restore(tb.Context(), first, path, func(ctx context.Context, c *etcd.Client) error { return prepare(ctx, c) })
	if err != nil {
		tb.Fatal(err)
	}
	if e.Kind != Members {
		e.Restart(tb)
		return
	}
	for i, c := range e.Configs {
		if i > 0 { // the first is a store of one, which the others join
			if _, err := etcd.ReplaceMember(tb.Context(), c); err != nil {
				tb.Fatal(err)
			}
		}
		if e.Servers[i], err = etcd.Start(tb.Context(), c); err != nil {
			tb.Fatal(err)
		}
	}
	e.Server = e.Servers[0]
}
