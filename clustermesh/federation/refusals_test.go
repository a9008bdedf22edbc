// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

// refusedAre waits until status names exactly these as refused as they are now.
func refusedAre(t *testing.T, what string, a, b *testCluster, want ...string) {
	t.Helper()
	var got []string
	defer func() {
		if t.Failed() {
			t.Logf("%s: refused are %q, want %q", what, got, want)
		}
	}()
	eventually(t, what, func() bool {
		s := a.status(b)
		got = s.GetLastRefused()
		return len(got) == len(want) && int(s.GetRefusedNow()) == len(want) && !slices.ContainsFunc(want, func(w string) bool {
			return !slices.ContainsFunc(got, func(g string) bool { return strings.Contains(g, w) })
		})
	})
}

func widen(t *testing.T, a, b *testCluster, c peering.GrantChange) {
	t.Helper()
	if _, changed, err := a.m.ChangeGrant(t.Context(), b.name, c); err != nil || !changed {
		t.Fatal(changed, err)
	}
}

// What a wider grant allows is not listed as refused any more: with a stream, and
// while the peer is lost, when the refused records are judged as they were last
// seen. What it does not allow, and what no grant would, stays listed.
func TestRefusedLinesFollowTheGrant(t *testing.T) {
	a, b := pair(t)
	publish := func(n int, prefix string) string {
		_, rec := b.ipRecord(n, "x")
		rec.Prefix = prefix
		k := kvstore.NewKey(kvstore.State, b.name, kvstore.KindIP, prefix)
		b.put(k, rec)
		return k.String()
	}
	publish(1, "10.76.0.9/32")
	publish(2, "10.77.0.9/32")
	publish(3, "10.78.0.9/32")
	gone := publish(4, "10.79.0.9/32")
	b.putRaw(kvstore.NewKey(kvstore.State, b.name, kvstore.KindIP, "10.2.0.66/32").String(), []byte("nonsense"))
	rec := describe(b.name, b.id, b.proxy.addr())
	rec.NodeCidrs = append(rec.NodeCidrs, "192.168.99.0/24")
	b.put(kvstore.NewKey(kvstore.State, b.name, kvstore.KindCluster), rec)
	for i := range 3 {
		name := fmt.Sprintf("s%d", i)
		b.put(kvstore.NewKey(kvstore.State, b.name, kvstore.KindService, "demo", name), &keyspacev1.Service{
			Namespace: "demo", Name: name, Id: b.id<<16 + uint32(i) + 1, Global: true, Shared: true,
			Ports: []*keyspacev1.ServicePort{{Port: 80, Protocol: keyspacev1.Protocol_PROTOCOL_TCP}},
		})
	}
	refusedAre(t, "four, one that is unreadable, and a range", a, b, "10.76.0.9", "10.77.0.9", "10.78.0.9", "10.79.0.9", "10.2.0.66", "192.168.99.0/24")
	b.del(gone)
	refusedAre(t, "one was deleted", a, b, "10.76.0.9", "10.77.0.9", "10.78.0.9", "10.2.0.66", "192.168.99.0/24")

	widen(t, a, b, peering.GrantChange{AddPods: []string{"10.76.0.0/24"}, MaxServices: new(uint64(1))})
	refusedAre(t, "one is granted, and services are too many", a, b, "10.77.0.9", "10.78.0.9", "10.2.0.66", "192.168.99.0/24", "granted 1 of kind", "granted 1 of kind")
	counted := a.status(b).GetRefused()["address"]

	heal := isolate(a, b)
	eventually(t, "lost", func() bool { return a.status(b).GetState() == stateLost })
	widen(t, a, b, peering.GrantChange{AddPods: []string{"10.77.0.0/24"}})
	refusedAre(t, "another one, without a stream", a, b, "10.78.0.9", "10.2.0.66", "192.168.99.0/24", "granted 1 of kind", "granted 1 of kind")
	if finding(a.status(b), "grant") == nil {
		t.Error("the range is not found to be refused")
	}
	widen(t, a, b, peering.GrantChange{AddNodes: []string{"192.168.99.0/24"}, MaxServices: new(uint64(2))})
	refusedAre(t, "the range and services", a, b, "10.78.0.9", "10.2.0.66")
	if f := finding(a.status(b), "grant"); f != nil {
		t.Errorf("what is granted is found to be refused: %v", f)
	}
	widen(t, a, b, peering.GrantChange{AddPods: []string{"10.78.0.0/24"}})
	refusedAre(t, "all but what no grant allows", a, b, "10.2.0.66")
	if s := a.status(b); s.GetState() != stateLost || s.GetRefused()["address"] != counted {
		t.Errorf("%s, %v counted; want lost, %d as before", s.GetState(), s.GetRefused(), counted)
	}

	heal()
	connected(t, a, b)
	refusedAre(t, "what the stream says: one service too many still", a, b, "10.2.0.66", "granted 2 of kind")
}

// Of refused records only so much is kept; one that is not known any more cannot
// be judged by another grant, and is left to the next stream.
func TestRefusedRecordsAreBounded(t *testing.T) {
	r := newRefusals()
	bad := &kvstore.BadRecord{Key: "k", Reason: kvstore.ReasonAddress, Detail: "no"}
	big := make([]byte, maxRefusedBytes/2)
	for _, key := range []string{"a", "b", "c"} {
		r.stand(key, bad, big)
	}
	if !r.standing["a"].kept || !r.standing["b"].kept || r.standing["c"].kept || r.bytes != maxRefusedBytes {
		t.Errorf("%d bytes are kept", r.bytes)
	}
	r.settle("a")
	r.stand("c", bad, big)
	r.stand("c", bad, big)
	if !r.standing["c"].kept || r.bytes != maxRefusedBytes || len(r.lines()) != 2 {
		t.Errorf("%d bytes are kept of %d", r.bytes, len(r.standing))
	}
	r.stand("d", bad, big)
	r.settle("b")
	r.settle("c")
	guard, err := peering.NewGuard(&keyspacev1.Peer{Name: "west", Grant: &keyspacev1.Grant{}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.rejudge("west", guard); len(r.standing) != 0 || r.bytes != 0 {
		t.Errorf("%d stand that cannot be judged, %d bytes", len(r.standing), r.bytes)
	}
	for n := range 2 * maxStanding {
		r.stand(fmt.Sprint(n), bad, nil)
		r.stream(bad)
	}
	if len(r.standing) != maxStanding || len(r.streams) != keptRefusals || len(r.lines()) != keptRefusals {
		t.Errorf("%d and %d are remembered, %d shown", len(r.standing), len(r.streams), len(r.lines()))
	}
	if r.forget(); len(r.standing) != 0 || r.bytes != 0 || len(r.lines()) != keptRefusals {
		t.Error("not forgotten, or the streams' with them")
	}
}
