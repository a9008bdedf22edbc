// SPDX-License-Identifier: Apache-2.0

package etcd_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// reconfigure restarts an etcd of one member with another configuration.
func reconfigure(t *testing.T, e *etcdtest.Etcd, change func(*etcd.ServerConfig)) {
	t.Helper()
	e.Stop()
	for i := range e.Configs {
		change(&e.Configs[i])
	}
	e.Config = e.Configs[0]
	e.Restart(t)
}

const mib = 1 << 20

// fill writes values over one key, or over keys of their own, until etcd refuses.
func fill(t *testing.T, c kvstore.Client, prefix string, distinct bool) {
	t.Helper()
	value := make([]byte, mib/2)
	_, _ = rand.Read(value)
	for i := range 1000 {
		key := prefix + "nodes/n"
		if distinct {
			key += fmt.Sprint(i)
		}
		_, err := c.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(key, value)}, nil)
		if err == nil {
			continue
		}
		if !strings.Contains(err.Error(), "database space exceeded") {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("the quota has no effect")
}

func writable(t *testing.T, c kvstore.Client, prefix string) bool {
	t.Helper()
	_, err := c.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(prefix+"nodes/small", []byte("x"))}, nil)
	return err == nil
}

// A database full of history heals by itself; it is told meanwhile.
func TestFullOfHistoryHeals(t *testing.T) {
	t.Parallel()
	for _, k := range []etcdtest.Kind{etcdtest.Embedded, etcdtest.Members} {
		t.Run(string(k), func(t *testing.T) {
			e := etcdtest.StartKind(t, k)
			reconfigure(t, e, func(c *etcd.ServerConfig) { c.QuotaBytes = 16 * mib })
			api := e.APIServer(t)
			prefix := kvstore.Prefix(kvstore.State, e.Cluster)
			fill(t, api, prefix, false)
			st, err := e.Server.Stats(t.Context())
			if err != nil || !st.NoSpace {
				t.Fatalf("not told: %+v, %v", st, err)
			}
			ps := st.Problems(true)
			if len(ps) != 1 || !strings.Contains(ps[0].Problem, "full") || !strings.Contains(ps[0].Fix, "--etcd-quota") {
				t.Errorf("problems %+v", ps)
			}
			// Reading goes on, and the agent's own way to see it.
			if st, err := api.Stats(t.Context(), prefix); err != nil || !st.NoSpace || st.Keys != 1 {
				t.Errorf("as the API server: %+v, %v", st, err)
			}
			if writable(t, api, prefix) {
				t.Error("a full etcd took a write")
			}
			reconfigure(t, e, func(c *etcd.ServerConfig) { c.UpkeepEvery = 50 * time.Millisecond })
			etcdtest.Eventually(t, 30*time.Second, "it takes writes again", func() bool { return writable(t, api, prefix) })
			if st, err := e.Server.Stats(t.Context()); err != nil || st.NoSpace || st.DatabaseBytes > 4*mib || len(st.Problems(true)) != 0 {
				t.Errorf("healed: %+v, %v", st, err)
			}
		})
	}
}

// What is written over and over does not use up the quota: history makes room
// before writes are refused. (How fast the machine is does not matter: the writers
// wait when room is getting scarce.)
func TestHistoryMakesRoom(t *testing.T) {
	const quota, writers, each = 32 * mib, 4, 16
	e := etcdtest.Start(t)
	reconfigure(t, e, func(c *etcd.ServerConfig) { c.QuotaBytes, c.DiskEvery = quota, 20*time.Millisecond })
	api := e.APIServer(t)
	prefix := kvstore.Prefix(kvstore.State, e.Cluster)
	value := bytes.Repeat([]byte("x"), 8<<10)
	for written := 0; written < 2*quota; written += writers * each * len(value) {
		var g errgroup.Group
		for w := range writers {
			g.Go(func() error {
				op := kvstore.Put(fmt.Sprintf("%snodes/n%d", prefix, w), value)
				for range each {
					if _, err := api.Txn(t.Context(), nil, []kvstore.Op{op}, nil); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatalf("after %d MiB of changes to a database of 32 MiB: %v", written/mib, err)
		}
		etcdtest.Eventually(t, 30*time.Second, "history makes room", func() bool {
			st, err := e.Server.Stats(t.Context())
			return err == nil && st.InUseBytes < quota*85/100
		})
	}
	if st, err := e.Server.Stats(t.Context()); err != nil || st.NoSpace {
		t.Errorf("%+v, %v", st, err)
	}
}

// A database full of keys stays read-only and says what to do; removing keys
// lets it heal.
func TestFullOfKeysStaysReadOnly(t *testing.T) {
	e := etcdtest.Start(t)
	reconfigure(t, e, func(c *etcd.ServerConfig) { c.QuotaBytes = 16 * mib })
	api := e.APIServer(t)
	prefix := kvstore.Prefix(kvstore.State, e.Cluster)
	var err error
	for i := range 20 { // healing gives back what defragmenting finds, a last time or two
		fill(t, api, fmt.Sprintf("%snodes/%d-", prefix, i), true)
		if err = e.Server.Heal(t.Context()); err != nil {
			break
		}
	}
	if err == nil || !strings.Contains(err.Error(), "keys alone") {
		t.Fatalf("healed: %v", err)
	}
	if writable(t, api, prefix) {
		t.Error("a full etcd took a write")
	}
	all := kvstore.Delete(prefix + "nodes/")
	all.Prefix = true
	if _, err := api.Txn(t.Context(), nil, []kvstore.Op{all}, nil); err != nil {
		t.Fatalf("deleting must be possible: %v", err)
	}
	if err := e.Server.Heal(t.Context()); err != nil || !writable(t, api, prefix) {
		t.Errorf("after deleting: %v", err)
	}
}

func TestDefragmentsWhatIsMostlyFree(t *testing.T) {
	t.Parallel()
	for _, k := range []etcdtest.Kind{etcdtest.Embedded, etcdtest.Members} {
		t.Run(string(k), func(t *testing.T) {
			e := etcdtest.StartKind(t, k)
			api := e.APIServer(t)
			prefix := kvstore.Prefix(kvstore.State, e.Cluster)
			value := make([]byte, mib/2)
			_, _ = rand.Read(value)
			var rev int64
			for range 40 {
				rev = put(t, api, prefix+"nodes/n", string(value))
			}
			if err := e.Server.Compact(t.Context(), rev); err != nil {
				t.Fatal(err)
			}
			reconfigure(t, e, func(c *etcd.ServerConfig) { c.UpkeepEvery, c.MinDefragment = 50*time.Millisecond, 4*mib })
			var st etcd.Stats
			etcdtest.Eventually(t, 30*time.Second, "every member is small", func() bool {
				var err error
				if st, err = e.Server.Stats(t.Context()); err != nil {
					return false
				}
				for _, m := range st.Members {
					if m.Err != nil || m.DatabaseBytes > 4*mib {
						return false
					}
				}
				return len(st.Members) == len(e.Configs)
			})
			leaders := 0
			for _, m := range st.Members {
				if m.Leader {
					leaders++
				}
				if m.Name == "" || m.Endpoint == "" {
					t.Errorf("member %+v", m)
				}
			}
			if leaders != 1 {
				t.Errorf("%d leaders in %+v", leaders, st.Members)
			}
		})
	}
}

func TestTakesAndKeepsSnapshots(t *testing.T) {
	e := etcdtest.Start(t)
	dir := filepath.Join(t.TempDir(), "snapshots")
	put(t, e.APIServer(t), kvstore.Prefix(kvstore.State, e.Cluster)+"nodes/n", "x")
	reconfigure(t, e, func(c *etcd.ServerConfig) {
		c.SnapshotDir, c.SnapshotEvery, c.SnapshotKeep, c.UpkeepEvery = dir, 10*time.Millisecond, 3, 20*time.Millisecond
	})
	seen := map[string]bool{}
	files := func() []string {
		fs, _ := filepath.Glob(filepath.Join(dir, "*"))
		return fs
	}
	etcdtest.Eventually(t, 20*time.Second, "older snapshots are removed", func() bool {
		for _, f := range files() {
			seen[f] = true
		}
		return len(seen) > 6
	})
	reconfigure(t, e, func(c *etcd.ServerConfig) { c.SnapshotEvery = time.Hour })
	left := files()
	if len(left) != 3 {
		t.Errorf("%d files are left: %v", len(left), left)
	}
	for _, f := range left {
		info, err := etcd.CheckSnapshot(f)
		if err != nil || info.Keys == 0 || info.Revision == 0 {
			t.Errorf("%s: %+v, %v", f, info, err)
		}
		if st, err := os.Stat(f); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s holds secrets: %v, %v", f, st.Mode(), err)
		}
	}
	// One that is recent is not taken again after a restart.
	etcdtest.Eventually(t, 20*time.Second, "the newest is known", func() bool {
		st, err := e.Server.Stats(t.Context())
		return err == nil && st.Snapshot.Path == left[len(left)-1]
	})
	if now := files(); len(now) != 3 {
		t.Errorf("a restart took another: %v", now)
	}
}

func TestOnlyRootTakesSnapshots(t *testing.T) {
	e := etcdtest.Start(t)
	if _, err := e.APIServer(t).Snapshot(t.Context(), io.Discard); !errors.Is(err, kvstore.ErrDenied) {
		t.Errorf("the API server's own user: %v", err)
	}
}

func TestRestoreRefuses(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	key := kvstore.Prefix(kvstore.State, e.Cluster) + "nodes/n"
	put(t, api, key, "old")
	path := e.Snapshot(t)
	put(t, api, key, "new")
	nothing := func(context.Context, *etcd.Client) error { return nil }
	if _, err := etcd.Restore(t.Context(), e.Config, path, nothing); err == nil || !strings.Contains(err.Error(), "stopped") {
		t.Errorf("under a running server: %v", err)
	}
	e.Stop()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bent := append([]byte(nil), whole...)
	bent[len(bent)/2] ^= 1
	other := append([]byte(nil), whole...)
	other[len(other)-1] ^= 1
	for what, data := range map[string][]byte{
		"not what its checksum is of": other,
		"cut short":                   whole[:len(whole)-1000], "damaged": bent, "not a snapshot": []byte("hello"), "empty": nil,
	} {
		f := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(f, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := etcd.CheckSnapshot(f); err == nil {
			t.Errorf("%s: the check finds nothing wrong", what)
		}
		if _, err := etcd.Restore(t.Context(), e.Config, f, nothing); err == nil || !strings.Contains(err.Error(), f) {
			t.Errorf("%s: %v", what, err)
		}
	}
	no := errors.New("of another cluster")
	if _, err := etcd.Restore(t.Context(), e.Config, path, func(context.Context, *etcd.Client) error { return no }); !errors.Is(err, no) {
		t.Errorf("prepare's refusal: %v", err)
	}
	e.Restart(t)
	value := func() string {
		kv, _, err := api.Get(t.Context(), key)
		if err != nil || kv == nil {
			return fmt.Sprint(err)
		}
		return string(kv.Value)
	}
	etcdtest.Eventually(t, 30*time.Second, "the store is untouched", func() bool { return value() == "new" })
	if left, _ := filepath.Glob(e.Config.DataDir + ".*"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	e.Stop()
	former, err := etcd.Restore(t.Context(), e.Config, path, nothing)
	if err != nil || former == "" {
		t.Fatalf("restore: %q, %v", former, err)
	}
	if _, err := os.Stat(filepath.Join(former, "member")); err != nil {
		t.Errorf("the former data is not kept: %v", err)
	}
	e.Restart(t)
	etcdtest.Eventually(t, 30*time.Second, "the backup is served", func() bool { return value() == "old" })
	if _, err := e.Agent(t, "n1").Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(kvstore.Prefix(kvstore.Private, e.Cluster)+"x", nil)}, nil); !errors.Is(err, kvstore.ErrDenied) {
		t.Errorf("access control after a restore: %v", err)
	}
}

// The history is bounded by age, and by its length: who asks for what is older
// is told to list again.
func TestHistoryIsBounded(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*etcd.ServerConfig){
		"by age":    func(c *etcd.ServerConfig) { c.History = 500 * time.Millisecond },
		"by length": func(c *etcd.ServerConfig) { c.HistoryRevisions, c.UpkeepEvery = 10, 50*time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			e := etcdtest.StartKind(t, etcdtest.Embedded)
			reconfigure(t, e, change)
			api := e.APIServer(t)
			prefix := kvstore.Prefix(kvstore.State, e.Cluster)
			var old int64
			etcdtest.Eventually(t, 30*time.Second, "it takes writes", func() bool { return writable(t, api, prefix) })
			old = put(t, api, prefix+"nodes/n", "first")
			etcdtest.Eventually(t, 20*time.Second, "the first revision is forgotten", func() bool {
				put(t, api, prefix+"nodes/n", "x")
				_, err := api.List(t.Context(), prefix, "", 0, old)
				return errors.Is(err, kvstore.ErrCompacted)
			})
			newest := put(t, api, prefix+"nodes/n", "y")
			if p, err := api.List(t.Context(), prefix, "", 0, newest); err != nil || len(p.KVs) != 2 {
				t.Errorf("what is now: %+v, %v", p, err)
			}
		})
	}
}

// A backup of one member is restored into three, and one of three into one.
func TestOneAndThreeByBackup(t *testing.T) {
	t.Parallel()
	for from, to := range map[etcdtest.Kind]etcdtest.Kind{etcdtest.Embedded: etcdtest.Members, etcdtest.Members: etcdtest.Embedded} {
		t.Run(string(from)+" to "+string(to), func(t *testing.T) {
			a, b := etcdtest.StartKind(t, from), etcdtest.StartKind(t, to)
			key := kvstore.Prefix(kvstore.State, a.Cluster) + "nodes/n"
			put(t, a.APIServer(t), key, "kept")
			path := a.Snapshot(t)
			b.Stop()
			b.Wipe(t)
			b.Restore(t, path, func(context.Context, kvstore.Client) error { return nil })
			for _, ep := range b.Endpoints() { // each member has it
				c := b.ClientAt(t, ep, pki.RoleRoot, "")
				etcdtest.Eventually(t, 20*time.Second, "the key is there", func() bool {
					kv, _, err := c.Get(t.Context(), key)
					return err == nil && kv != nil && string(kv.Value) == "kept"
				})
			}
			st, err := b.Server.Stats(t.Context())
			if want := len(b.Endpoints()); err != nil || len(st.Members) != want || len(st.Problems(true)) != 0 {
				t.Errorf("%+v, %v", st, err)
			}
		})
	}
}

// What was made ready for a restore is gone: the server's data stays where it is,
// else it would begin with none.
func TestRestoreThatFailsKeepsTheData(t *testing.T) {
	e := etcdtest.StartKind(t, etcdtest.Embedded)
	key := kvstore.Prefix(kvstore.State, e.Cluster) + "nodes/n"
	put(t, e.APIServer(t), key, "old")
	path := e.Snapshot(t)
	e.Stop()
	r, err := etcd.PrepareRestore(t.Context(), e.Config, path, func(context.Context, *etcd.Client) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	r.Discard()
	if former, err := r.Commit(t.Context()); err == nil || former != "" || !strings.Contains(err.Error(), "former data stays") {
		t.Errorf("former data %q, %v", former, err)
	}
	if left, err := filepath.Glob(e.Config.DataDir + ".*"); err != nil || len(left) != 0 {
		t.Errorf("beside the data are %v, %v", left, err)
	}
	e.Restart(t)
	if kv, _, err := e.APIServer(t).Get(t.Context(), key); err != nil || kv == nil || string(kv.Value) != "old" {
		t.Errorf("afterwards it holds %v, %v", kv, err)
	}
}
