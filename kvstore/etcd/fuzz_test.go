// SPDX-License-Identifier: Apache-2.0

package etcd_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// FuzzParseMember is the text of --etcd-member.
func FuzzParseMember(f *testing.F) {
	f.Add("a=10.0.0.1:2379/10.0.0.1:2380")
	f.Add("=/")
	f.Add("a=[fd00::1]:2379/[fd00::1]:2380")
	f.Fuzz(func(t *testing.T, s string) {
		m, err := etcd.ParseMember(s)
		if err != nil {
			return
		}
		if again, err := etcd.ParseMember(m.String()); err != nil || again != m {
			t.Fatalf("%q is %v, and that is %v, %v", s, m, again, err)
		}
	})
}

// FuzzCheckSnapshot bends a snapshot: damage is found by the checksum, before
// anything reads the database in it. (A database whose pages contradict each other
// under a checksum that is right brings bbolt down: only an administrator could
// make one.)
func FuzzCheckSnapshot(f *testing.F) {
	f.Add(0, []byte{})
	f.Add(0, []byte{0, 0, 16, 8, 255, 0, 0, 32, 0, 1})
	f.Add(5000, []byte{0, 0, 0, 16, 0, 0, 0, 0, 24, 99, 0, 0, 16, 24, 7})
	base := snapshotBytes(f)
	f.Fuzz(func(t *testing.T, cut int, bends []byte) {
		data := append([]byte(nil), base[:len(base)-max(0, cut)%len(base)]...)
		for ; len(bends) >= 5; bends = bends[5:] { // where, what
			data[int(binary.BigEndian.Uint32(bends))%len(data)] = bends[4]
		}
		path := filepath.Join(t.TempDir(), "snapshot")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		info, err := etcd.CheckSnapshot(path)
		if same := bytes.Equal(data, base); same != (err == nil) || same && info.Keys == 0 {
			t.Fatalf("the same: %v; %+v, %v", same, info, err)
		}
	})
}

// snapshotBytes is a small snapshot.
func snapshotBytes(f *testing.F) []byte {
	f.Helper()
	e := etcdtest.StartKind(f, etcdtest.Embedded)
	if _, err := e.APIServer(f).Txn(f.Context(), nil, []kvstore.Op{kvstore.Put(kvstore.Prefix(kvstore.State, e.Cluster)+"nodes/n", []byte("x"))}, nil); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(e.Snapshot(f))
	if err != nil {
		f.Fatal(err)
	}
	return whole
}
