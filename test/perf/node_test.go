// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
)

// node is a real agent in the test's namespace.
type node struct {
	group *group
	ips   *ebpf.Map // its ipcache in the kernel
	out   bytes.Buffer
}

// startNode runs an agent of the cluster, with default settings, until the test
// ends.
func startNode(t *testing.T, c *cluster) *node {
	t.Helper()
	n := &node{group: newGroup(t, "agent")}
	dir := scratchDir(t, onTmpfs)
	fs := filepath.Join(dir, "bpf")
	if err := errors.Join(os.Mkdir(fs, 0o700), unix.Mount("bpf", fs, "bpf", 0, "mode=0700")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(fs, unix.MNT_DETACH) })
	files, err := c.etcd.Files(pki.Request{Role: pki.RoleAgent, Name: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	socket, pins := filepath.Join(dir, "agent.sock"), filepath.Join(fs, "n1")
	cmd := n.group.command(program("hawser-agent"), "--cluster", c.Name, "--node", "n1",
		"--etcd-endpoint", "https://"+c.listen, "--tls-dir", c.issue(t, "agent", "n1"), "--etcd-tls-dir", asTLS(t, files),
		"--underlay-device", "eth0", "--node-address", hostOf(near()).String(), "--pod-cidr", fmt.Sprintf("10.%d.1.0/24", c.ID),
		"--state-dir", filepath.Join(dir, "state"), "--socket", socket, "--pin-path", pins, "--metrics-listen", "")
	cmd.Stdout, cmd.Stderr = &n.out, &n.out
	if file := os.Getenv("HAWSER_PERF_LOGS"); file != "" {
		f, err := os.Create(filepath.Join(file, "agent.log"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.Stdout, cmd.Stderr = f, f
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	api := hawserv1.NewNodeClient(onSocket(t, socket))
	for end := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		if _, err = api.Status(t.Context(), &hawserv1.StatusRequest{}); err == nil {
			break
		}
		if time.Now().After(end) {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Fatalf("agent: %v\n%s", err, n.out.String())
		}
	}
	if n.ips, err = ebpf.LoadPinnedMap(filepath.Join(pins, "maps", "ipcache"), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.ips.Close() })
	return n
}

// identityOf is what the kernel says of an address; 0 if nothing.
func (n *node) identityOf(w world, ip int) uint32 {
	var v maps.IPEntry
	if n.ips.Lookup(maps.IPKey{Addr: maps.AddrFrom(w.pod(ip % w.IPs))}, &v) != nil {
		return 0
	}
	return v.Identity
}

// knows waits until the kernel has the last address of each world.
func (n *node) knows(t *testing.T, worlds []world) {
	t.Helper()
	etcdtest.Eventually(t, 4*within, "the kernel has all addresses", func() bool {
		time.Sleep(20 * time.Millisecond)
		for _, w := range worlds {
			if n.identityOf(w, w.IPs-1) == 0 {
				return false
			}
		}
		return true
	})
}

// mapLag follows addresses from the local etcd into the kernel's map: of every
// n-th one it asks the map, twice in a millisecond, until it says what the
// record says.
type mapLag struct {
	stop   func()
	done   chan struct{}
	polls  sync.WaitGroup
	seen   atomic.Int64
	missed atomic.Int64

	mu sync.Mutex
	ms []float64
}

func (n *node) watchMap(t *testing.T, c *cluster, every int) *mapLag {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &mapLag{stop: cancel, done: make(chan struct{})}
	rev, ready := c.revision(t), make(chan struct{})
	var once sync.Once
	go func() { // ends with the context
		defer close(l.done)
		_ = c.kv.Watch(ctx, kvstore.SubtreePrefix(kvstore.State), rev+1, func(b kvstore.WatchBatch) error {
			once.Do(func() { close(ready) })
			for _, e := range b.Events {
				k, err := kvstore.ParseKey(e.Key)
				var ip keyspacev1.IPEntry
				if err != nil || k.Kind != kvstore.KindIP || proto.Unmarshal(e.Value, &ip) != nil {
					continue
				}
				if l.seen.Add(1)%int64(every) == 0 {
					l.polls.Go(func() { l.follow(n, &ip) })
				}
			}
			return nil
		})
	}()
	<-ready
	return l
}

func (l *mapLag) follow(n *node, ip *keyspacev1.IPEntry) {
	key := keyOf(ip.GetPrefix())
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(500 * time.Microsecond) {
		var v maps.IPEntry
		if n.ips.Lookup(key, &v) == nil && v.Identity == ip.GetIdentity() {
			l.mu.Lock()
			l.ms = append(l.ms, float64(time.Now().UnixNano()-ip.GetUpdatedAt())/1e6)
			l.mu.Unlock()
			return
		}
	}
	l.missed.Add(1)
}

// end waits for the events and the map, and returns the ages.
func (l *mapLag) end(t *testing.T, total int) []float64 {
	t.Helper()
	etcdtest.Eventually(t, within, "all changes are in the local etcd", func() bool { return l.seen.Load() >= int64(total) })
	l.stop()
	<-l.done
	l.polls.Wait()
	if n := l.missed.Load(); n > 0 {
		t.Errorf("%d changes did not reach the map within %s", n, within)
	}
	return l.ms
}
