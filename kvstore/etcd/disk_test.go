// SPDX-License-Identifier: Apache-2.0

package etcd_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// smallDisk names the directory of a small disk to the test that runs again in a
// mount namespace of its own.
const smallDisk = "HAWSER_TEST_SMALL_DISK"

// onSmallDisk runs the calling test again with a tmpfs of that size that nobody
// else sees, and reports whether this is that run.
func onSmallDisk(t *testing.T, size int64) (dir string, here bool) {
	t.Helper()
	if dir := os.Getenv(smallDisk); dir != "" {
		for _, err := range []error{
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return dir, true
	}
	if os.Geteuid() != 0 {
		t.Skip("a small disk is a mount, which needs root")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), smallDisk+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return "", false
}

// clog takes all but that much of a disk, and returns how to give it back, with
// what it took before.
func clog(t *testing.T, dir string, leave int64) (release func()) {
	t.Helper()
	path := filepath.Join(dir, "something-else")
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	has, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if take := int64(st.Bavail)*st.Bsize - leave; take > 0 {
		if err := unix.Fallocate(int(f.Fd()), 0, has.Size(), take); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// A disk that something else fills: etcd refuses writes in time and says why,
// goes on when nothing at all is left, and takes writes again when there is room.
func TestFullDisk(t *testing.T) {
	dir, here := onSmallDisk(t, 400<<20)
	if !here {
		return
	}
	e := etcdtest.StartKind(t, etcdtest.Embedded)
	e.Stop()
	e.Config.DataDir, e.Config.DiskEvery, e.Config.UpkeepEvery = filepath.Join(dir, "etcd"), 20*time.Millisecond, 100*time.Millisecond
	e.Configs[0] = e.Config
	e.Restart(t)
	defer e.Stop() // before the disk goes
	api, prefix := e.APIServer(t), kvstore.Prefix(kvstore.State, e.Cluster)
	etcdtest.Eventually(t, 30*time.Second, "it takes writes", func() bool { return writable(t, api, prefix) })
	for round := range 2 {
		clog(t, dir, 90<<20)
		etcdtest.Eventually(t, 30*time.Second, "writes are refused", func() bool { return !writable(t, api, prefix) })
		_, err := api.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(prefix+"nodes/n", nil)}, nil)
		if !errors.Is(err, kvstore.ErrNoSpace) {
			t.Fatalf("round %d: refused with %v", round, err)
		}
		st, err := e.Server.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ps := st.Problems(true); len(ps) != 1 || !strings.Contains(ps[0].Problem, "the disk of "+dir) || !strings.Contains(ps[0].Fix, "make room") {
			t.Errorf("round %d: problems %+v", round, ps)
		}
		// Not a byte is left, and everybody goes on trying. There is no room in
		// between: with it, writes would be taken again until the next look.
		release := clog(t, dir, 0)
		root := e.Root(t)
		for i := range 2000 {
			if _, err := api.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(fmt.Sprintf("%snodes/n%d", prefix, i), nil)}, nil); err == nil {
				t.Fatal("a full disk takes a write")
			}
		}
		if kv, _, err := root.Get(t.Context(), prefix+"nodes/small"); err != nil || kv == nil {
			t.Fatalf("round %d: reading on a full disk: %v, %v", round, kv, err)
		}
		release()
		etcdtest.Eventually(t, 30*time.Second, "writes are taken again", func() bool { return writable(t, api, prefix) })
		if st, err := e.Server.Stats(t.Context()); err != nil || st.NoSpace || len(st.Problems(true)) != 0 {
			t.Errorf("round %d: afterwards %+v, %v", round, st, err)
		}
	}
}

// A store is not begun where there is no room for it, and one that exists opens
// where there is none to write, to be read. A segment of its log must fit: etcd
// makes the next one while it reads the last.
func TestStartOnAFullDisk(t *testing.T) {
	dir, here := onSmallDisk(t, 400<<20)
	if !here {
		return
	}
	e := etcdtest.StartKind(t, etcdtest.Embedded)
	e.Stop()
	cfg := e.Config
	cfg.DataDir = filepath.Join(dir, "etcd")
	release := clog(t, dir, 50<<20)
	if s, err := etcd.Start(t.Context(), cfg); err == nil {
		s.Close()
		t.Error("began a store on a full disk")
	} else if !strings.Contains(err.Error(), "50 MiB left") || !strings.Contains(err.Error(), "make room") {
		t.Errorf("refused with %v", err)
	}
	release()
	e.Config, e.Configs[0] = cfg, cfg
	e.Restart(t)
	defer e.Stop()
	prefix := kvstore.Prefix(kvstore.State, e.Cluster)
	etcdtest.Eventually(t, 30*time.Second, "it takes writes", func() bool { return writable(t, e.APIServer(t), prefix) })
	e.Stop()
	release = clog(t, dir, 80<<20)
	e.Restart(t)
	api := e.APIServer(t)
	etcdtest.Eventually(t, 30*time.Second, "it is read, not written", func() bool {
		kv, _, err := api.Get(t.Context(), prefix+"nodes/small")
		return err == nil && kv != nil && !writable(t, api, prefix)
	})
	release()
	etcdtest.Eventually(t, 30*time.Second, "it takes writes again", func() bool { return writable(t, api, prefix) })
}

// A log that cannot be read is an error that names its directory.
func TestStartOnADamagedLog(t *testing.T) {
	e := etcdtest.StartKind(t, etcdtest.Embedded)
	e.Stop()
	logs, err := filepath.Glob(filepath.Join(e.Config.DataDir, "member", "wal", "*.wal"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("logs %v, %v", logs, err)
	}
	f, err := os.OpenFile(logs[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(strings.Repeat("x", 200)), 40); err != nil {
		t.Fatal(err)
	}
	s, err := etcd.Start(t.Context(), e.Config)
	if err == nil {
		s.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "start etcd in "+e.Config.DataDir) {
		t.Errorf("started with %v", err)
	}
}
