// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// pagesKV notes the largest page that was asked for.
type pagesKV struct {
	kvstore.Client
	largest atomic.Int64
}

func (p *pagesKV) List(ctx context.Context, prefix, after string, limit, rev int64) (kvstore.Page, error) {
	for old := p.largest.Load(); limit > old && !p.largest.CompareAndSwap(old, limit); old = p.largest.Load() {
	}
	return p.Client.List(ctx, prefix, after, limit, rev)
}

// many writes n addresses of 10.64.0.0/14.
func (c *testCluster) many(n int) {
	c.t.Helper()
	var ops []kvstore.Op
	for i := range n {
		addr := fmt.Sprintf("10.%d.%d.%d/32", 64+i>>16, i>>8&0xff, i&0xff)
		b, err := proto.Marshal(&keyspacev1.IPEntry{Prefix: addr, Identity: c.id<<16 + 7, Node: "n1", TunnelAddress: fmt.Sprintf("192.168.%d.1", c.id), Namespace: "demo", Workload: "w"})
		if err != nil {
			c.t.Fatal(err)
		}
		ops = append(ops, kvstore.Put(kvstore.NewKey(kvstore.State, c.name, kvstore.KindIP, addr).String(), b))
		if len(ops) == kvstore.MaxTxnOps || i == n-1 {
			if _, err := c.kv.Txn(c.t.Context(), nil, ops, nil); err != nil {
				c.t.Fatal(err)
			}
			ops = nil
		}
	}
}

// TestDiffOfManyKeys compares 100,000 keys, page by page on both sides.
func TestDiffOfManyKeys(t *testing.T) {
	const n = 100_000
	wide := func(c *testCluster) { c.cfg.Cluster.PodCidrs = []string{fmt.Sprintf("10.%d.0.0/14", 64*c.id)} }
	pages := &pagesKV{}
	a := newCluster(t, 1, wide)
	b := newCluster(t, 2, wide, neverRepairs, func(c *testCluster) {
		c.wrap = func(kv kvstore.Client) kvstore.Client { pages.Client = kv; return pages }
	})
	a.many(n)
	joinPeers(t, a, b)
	eventually(t, "all is copied", func() bool { return b.status(a).GetSnapshotsReceived() == 1 })
	d, err := b.m.DiffPeer(t.Context(), a.name, DiffRange{})
	if err != nil || len(d.GetRows()) != 0 || d.GetCompared() != n || d.GetNext() != "" {
		t.Fatalf("equal mirrors: %d rows of %d keys, next %q: %v", len(d.GetRows()), d.GetCompared(), d.GetNext(), err)
	}
	base := kvstore.Prefix(kvstore.State, a.name) + "ips/"
	key := func(i int) string { return fmt.Sprintf("%s10.%d.%d.%d%%2F32", base, 64+i>>16, i>>8&0xff, i&0xff) }
	want := map[string]string{}
	for i := 0; i < 2500; i++ {
		switch k := key(i * 39); i % 3 {
		case 0:
			b.del(k)
			want[k] = diffMissing
		case 1:
			b.putRaw(k, []byte("tampered"))
			want[k] = diffDiffers
		default:
			b.putRaw(k+"x", []byte("extra"))
			want[k+"x"] = diffExtra
		}
	}
	rows, compared, asked, after, last := 0, uint64(0), 0, "", ""
	for {
		d, err := b.m.DiffPeer(t.Context(), a.name, DiffRange{After: after, Rows: 700})
		if err != nil {
			t.Fatal(err)
		}
		asked, compared = asked+1, compared+d.GetCompared()
		for _, r := range d.GetRows() {
			if want[r.GetKey()] != r.GetDifference() || r.GetKey() <= last {
				t.Fatalf("%s %s; want %q, and behind %s", r.GetKey(), r.GetDifference(), want[r.GetKey()], last)
			}
			rows, last = rows+1, r.GetKey()
		}
		if len(d.GetRows()) > 700 {
			t.Errorf("a page of %d rows", len(d.GetRows()))
		}
		if after = d.GetNext(); after == "" {
			break
		}
	}
	if rows != len(want) || compared != n+833 || asked != 4 {
		t.Errorf("%d rows of %d keys in %d pages; want %d of %d in 4", rows, compared, asked, len(want), n+833)
	}
	if got := pages.largest.Load(); got > 1000 {
		t.Errorf("a page of %d keys was read", got)
	}
	if d, err := b.m.DiffPeer(t.Context(), a.name, DiffRange{Prefix: "ips/10.65.", Rows: 1 << 30}); err != nil || int(d.GetCompared()) > 35_000 || len(d.GetRows()) == 0 {
		t.Errorf("below a prefix: %d compared, %d rows: %v", d.GetCompared(), len(d.GetRows()), err)
	}
}

// listed is hashes of "key=value" texts.
type listed []string

func (l *listed) next(context.Context) (hashed, bool, error) {
	if len(*l) == 0 {
		return hashed{}, false, nil
	}
	k, v, _ := strings.Cut((*l)[0], "=")
	*l = (*l)[1:]
	return hashed{k, sha256.Sum256([]byte(v))}, true, nil
}

func TestCompare(t *testing.T) {
	for _, c := range []struct{ ours, theirs, want string }{
		{"", "", "0"},
		{"a=1 b=2", "a=1 b=2", "2"},
		{"a=1", "", "1 a extra here"},
		{"", "a=1 b=1", "2 a missing here b missing here"},
		{"a=1 c=3", "b=2 c=4", "3 a extra here b missing here c differs"},
		{"a=1 b=2 c=3", "c=3", "3 a extra here b extra here"},
		{"b=1 c=1 d=1", "a=1 b=1 e=1", "5 a missing here c extra here d extra here; e missing here"},
	} {
		ours, theirs := listed(strings.Fields(c.ours)), listed(strings.Fields(c.theirs))
		got := ""
		compared := uint64(0)
		for first := true; ; first = false {
			d, err := compare(t.Context(), &ours, &theirs, "", 3)
			if err != nil {
				t.Fatal(err)
			}
			if compared += d.GetCompared(); !first {
				got += ";"
			}
			for _, r := range d.GetRows() {
				got += " " + r.GetKey() + " " + r.GetDifference()
			}
			if d.GetNext() == "" {
				break
			}
			// A new listing begins behind it; ours was read one key ahead.
			next := d.GetNext()
			rest := func(all string) (out listed) {
				for _, f := range strings.Fields(all) {
					if k, _, _ := strings.Cut(f, "="); k > next {
						out = append(out, f)
					}
				}
				return out
			}
			ours, theirs = rest(c.ours), rest(c.theirs)
		}
		if got = fmt.Sprint(compared) + got; got != c.want {
			t.Errorf("%q against %q: %q, want %q", c.ours, c.theirs, got, c.want)
		}
	}
}
