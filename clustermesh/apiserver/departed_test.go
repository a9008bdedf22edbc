// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// watched is a cluster whose nodes are seen as a test says.
type watched struct {
	*Server
	at     time.Time
	unseen map[string]bool
}

func watchNodes(t *testing.T, n int) *watched {
	t.Helper()
	w := &watched{Server: start(t, testConfig(t)), at: time.Unix(1e9, 0), unseen: map[string]bool{}}
	for i := 1; i <= n; i++ {
		name := fmt.Sprintf("n%d", i)
		w.writeNode(t, name, fmt.Sprintf("10.1.%d.0/24", i))
		w.write(t, ipKey(i), &keyspacev1.IPEntry{Prefix: ipKey(i).Names[0], Identity: 65537, Node: name, TunnelAddress: "192.168.1." + name[1:]})
	}
	return w
}

func ipKey(node int) kvstore.Key {
	return kvstore.NewKey(kvstore.State, "east", kvstore.KindIP, fmt.Sprintf("10.1.%d.5/32", node))
}

func (w *watched) now() time.Time { return w.at }

func (w *watched) sees() func(string) bool { return func(node string) bool { return !w.unseen[node] } }

func (w *watched) undertaker() *undertaker {
	return &undertaker{s: w.Server, now: w.now, sees: w.sees}
}

// after lets time pass and looks again.
func (w *watched) after(t *testing.T, u *undertaker, d time.Duration) {
	t.Helper()
	w.at = w.at.Add(d)
	if err := u.step(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (w *watched) has(t *testing.T, k kvstore.Key) bool {
	t.Helper()
	kv, _, err := w.kv.Get(t.Context(), k.String())
	if err != nil {
		t.Fatal(err)
	}
	return kv != nil
}

// left are the nodes with a record.
func (w *watched) left(t *testing.T) (out []string) {
	t.Helper()
	rows, err := list[*keyspacev1.Node](t.Context(), w.Server, kvstore.State, "east", kvstore.KindNode)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		out = append(out, r.msg.GetName())
	}
	return out
}

// A node goes when it was not seen for 15 minutes without a break; what the
// cluster decided for it stays.
func TestDepartedNode(t *testing.T) {
	w := watchNodes(t, 5)
	config := w.nodeConfigKey("n2")
	w.write(t, config, &keyspacev1.NodeConfig{Node: "n2", Drained: true})
	u := w.undertaker()
	w.unseen["n2"] = true
	w.after(t, u, 0)
	w.after(t, u, DefaultDepartedAfter-time.Second)
	w.unseen["n2"] = false
	w.after(t, u, time.Minute)
	w.unseen["n2"] = true
	w.after(t, u, time.Minute)
	w.after(t, u, DefaultDepartedAfter-time.Second)
	if got := w.left(t); len(got) != 5 {
		t.Fatalf("left are %v, after less than %s without a break", got, DefaultDepartedAfter)
	}
	w.after(t, u, time.Second)
	if got := w.left(t); !slices.Equal(got, []string{"n1", "n3", "n4", "n5"}) || w.has(t, ipKey(2)) || !w.has(t, ipKey(3)) || !w.has(t, config) {
		t.Errorf("left are %v, address of n2 %t, of n3 %t, decisions for n2 %t", got, w.has(t, ipKey(2)), w.has(t, ipKey(3)), w.has(t, config))
	}
	if p := w.held.problems(time.Minute); len(p) != 0 {
		t.Errorf("problems: %v", p)
	}
}

// A presence that came while its keys were being looked for keeps a node.
func TestDepartedNodeComesBack(t *testing.T) {
	w := watchNodes(t, 5)
	w.unseen["n2"] = true
	u := w.undertaker()
	w.after(t, u, 0)
	w.write(t, kvstore.NewKey(kvstore.Local, "east", kvstore.KindPresence, "n2"), &keyspacev1.Presence{Node: "n2"})
	w.after(t, u, DefaultDepartedAfter)
	if got := w.left(t); len(got) != 5 || !w.has(t, ipKey(2)) {
		t.Errorf("left are %v", got)
	}
}

// One of five nodes within five minutes, and no more: of more at once none goes.
func TestDepartedNodesAtOnce(t *testing.T) {
	w := watchNodes(t, 10)
	u := w.undertaker()
	for _, n := range []string{"n1", "n2", "n3"} {
		w.unseen[n] = true
	}
	w.after(t, u, 0)
	w.after(t, u, DefaultDepartedAfter)
	w.after(t, u, DefaultDepartedAfter)
	p := w.held.problems(time.Minute)
	if got := w.left(t); len(got) != 10 || len(p) != 1 || !strings.Contains(p[0].GetObject(), "n1, n2, n3") {
		t.Fatalf("left are %v, problems %v", got, p)
	}
	w.unseen["n3"] = false
	w.after(t, u, time.Second)
	if got := w.left(t); len(got) != 8 || len(w.held.problems(time.Minute)) != 0 {
		t.Fatalf("left are %v", got)
	}
	w.unseen["n3"] = true // due while the others' removal is in the window
	w.after(t, u, 0)
	u.lost.since["n3"] = w.at.Add(-DefaultDepartedAfter)
	w.after(t, u, departedWindow-time.Second)
	if got := w.left(t); len(got) != 8 {
		t.Errorf("left are %v: three of ten went within %s", got, departedWindow)
	}
	w.after(t, u, time.Second)
	if got := w.left(t); len(got) != 7 {
		t.Errorf("left are %v after the window", got)
	}
}

// Nodes that were lost together stay together, though their leases did not end at
// the same moment; of those that were lost long after each other each goes.
func TestDepartedNodesWhoseLeasesEndApart(t *testing.T) {
	w := watchNodes(t, 6)
	u := w.undertaker()
	w.unseen["n1"] = true
	w.after(t, u, 0)
	w.unseen["n2"] = true
	w.after(t, u, 20*time.Second)
	w.after(t, u, DefaultDepartedAfter-20*time.Second) // n1 is due, n2 is not yet
	if got := w.left(t); len(got) != 6 {
		t.Fatalf("left are %v: one of two went first", got)
	}
	w.after(t, u, 20*time.Second)
	p := w.held.problems(time.Minute)
	if got := w.left(t); len(got) != 6 || len(p) != 1 || !strings.Contains(p[0].GetObject(), "n1, n2") {
		t.Fatalf("left are %v, problems %v", got, p)
	}
	w.unseen["n2"] = false
	w.after(t, u, time.Second)
	if got := w.left(t); !slices.Equal(got, []string{"n2", "n3", "n4", "n5", "n6"}) {
		t.Fatalf("left are %v", got)
	}
	w.unseen["n2"] = true
	w.after(t, u, departedWindow)
	w.unseen["n3"] = true
	w.after(t, u, departedWindow)
	w.after(t, u, DefaultDepartedAfter-departedWindow)
	if got := w.left(t); !slices.Equal(got, []string{"n3", "n4", "n5", "n6"}) {
		t.Errorf("left are %v: n2 was lost %s before n3", got, departedWindow)
	}
}

// One who no longer leads removes nothing.
func TestDepartedNodeFence(t *testing.T) {
	w := watchNodes(t, 5)
	w.unseen["n2"] = true
	u := w.undertaker()
	u.fence = []kvstore.Cmp{kvstore.AtRevision(kvstore.NewKey(kvstore.State, "east", kvstore.KindCluster).String(), 1)}
	w.after(t, u, 0)
	w.after(t, u, DefaultDepartedAfter)
	if got := w.left(t); len(got) != 5 {
		t.Errorf("left are %v", got)
	}
}

// Each witness alone keeps a node; a report by one that is not there itself does
// not.
func TestWitnesses(t *testing.T) {
	s := start(t, testConfig(t))
	w := s.watchman
	w.present["n1"] = true
	w.reports["n1"] = report{paths: []*keyspacev1.PathReport{{Cluster: "east", Node: "n2", Up: true}, {Cluster: "east", Node: "n3"}, {Cluster: "west", Node: "n4", Up: true}}}
	w.reports["n9"] = report{paths: []*keyspacev1.PathReport{{Cluster: "east", Node: "n5", Up: true}}}
	sees := w.witnesses()
	for node, want := range map[string]bool{"n1": true, "n2": true, "n3": false, "n4": false, "n5": false} {
		if sees(node) != want {
			t.Errorf("%s is seen: %t", node, !want)
		}
	}
}

// What a node said of others before it was lost does not show them when it is back.
func TestFormerReportsShowNobody(t *testing.T) {
	w := start(t, testConfig(t)).watchman
	presence := func(rev int64) {
		c := store.Change{Key: kvstore.NewKey(kvstore.Local, "east", kvstore.KindPresence, "n1"), Deleted: rev == 0}
		if rev > 0 {
			c.Record = &keyspacev1.Presence{Node: "n1"}
		}
		w.apply(store.Batch{Changes: []store.Change{c}})
	}
	says := func(rev int64) {
		w.apply(store.Batch{Changes: []store.Change{{
			Key: kvstore.NewKey(kvstore.Local, "east", kvstore.KindStatus, "n1"), KV: kvstore.KV{ModRevision: rev},
			Record: &keyspacev1.NodeStatus{Node: "n1", Paths: []*keyspacev1.PathReport{{Cluster: "east", Node: "n2", Up: true}}},
		}}})
	}
	for i, step := range []struct {
		do   func(int64)
		rev  int64
		want bool
	}{{presence, 1, false}, {says, 2, true}, {presence, 0, false}, {presence, 3, false}, {says, 4, true}} {
		if step.do(step.rev); w.witnesses()("n2") != step.want {
			t.Errorf("step %d: n2 is seen: %t", i, !step.want)
		}
	}
}

// What has no owner goes after 15 minutes unchanged, unless the node that wrote
// it is there; what has one stays.
func TestOrphans(t *testing.T) {
	w := watchNodes(t, 2)
	w.unseen["n8"] = true
	if _, err := apply(t, w.Server, manifest("web")); err != nil {
		t.Fatal(err)
	}
	w.write(t, kvstore.NewKey(kvstore.State, "east", kvstore.KindIdentity, "65537"), &keyspacev1.Identity{Number: 65537, Labels: []string{"mesh:cluster=east"}})
	w.writeBackend(t, "n1", "10.1.1.5", keyspacev1.Backend_STATE_ACTIVE)
	slice := func(service string) (kvstore.Key, proto.Message) {
		return kvstore.NewKey(kvstore.Local, "east", kvstore.KindSlice, "demo", service, "n1"), &keyspacev1.BackendSlice{Namespace: "demo", Service: service, Name: "n1"}
	}
	ref := func(number, node string) kvstore.Key {
		return kvstore.NewKey(kvstore.Local, "east", kvstore.KindRef, number, node)
	}
	gone := []kvstore.Key{ipKey(8), ref("65537", "n8"), kvstore.NewKey(kvstore.State, "east", kvstore.KindVTEP, "10.1.8.0/24")}
	w.write(t, gone[0], &keyspacev1.IPEntry{Prefix: gone[0].Names[0], Identity: 65537, Node: "n8", TunnelAddress: "192.168.1.8"})
	w.write(t, gone[1], &emptypb.Empty{})
	w.write(t, gone[2], &keyspacev1.VTEP{Prefix: "10.1.8.0/24", TunnelAddress: "192.168.1.8", Node: "n8"})
	key, m := slice("gone")
	w.write(t, key, m)
	gone = append(gone, key)
	stay := []kvstore.Key{ipKey(1), ipKey(9), ref("65537", "n1"), kvstore.NewKey(kvstore.Local, "east", kvstore.KindSlice, "demo", "web", "n1")}
	w.write(t, stay[1], &keyspacev1.IPEntry{Prefix: stay[1].Names[0], Identity: 65537, Node: "n9", TunnelAddress: "192.168.1.9"}) // seen
	w.write(t, stay[2], &emptypb.Empty{})
	o := &orphanage{s: w.Server, now: w.now, sees: w.sees}
	step := func(d time.Duration) {
		t.Helper()
		w.at = w.at.Add(d)
		if err := o.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	step(0)
	w.write(t, gone[0], &keyspacev1.IPEntry{Prefix: gone[0].Names[0], Identity: 65537, Node: "n8", TunnelAddress: "192.168.1.7"}) // changes
	step(DefaultDepartedAfter - time.Second)
	for _, k := range append(slices.Clone(gone), stay...) {
		if !w.has(t, k) {
			t.Errorf("%s went early", k)
		}
	}
	step(time.Second)
	if !w.has(t, gone[0]) {
		t.Errorf("%s went although it had changed", gone[0])
	}
	step(DefaultDepartedAfter)
	for _, k := range gone {
		if w.has(t, k) {
			t.Errorf("%s is still there", k)
		}
	}
	for _, k := range stay {
		if !w.has(t, k) {
			t.Errorf("%s is gone", k)
		}
	}
}

// Of many orphans of a kind one of five goes at a time.
func TestManyOrphans(t *testing.T) {
	w := watchNodes(t, 0)
	key := func(i int) kvstore.Key {
		return kvstore.NewKey(kvstore.Local, "east", kvstore.KindSlice, "demo", fmt.Sprintf("s%d", i), "n1")
	}
	for i := range 10 {
		w.write(t, key(i), &keyspacev1.BackendSlice{Namespace: "demo", Service: key(i).Names[1], Name: "n1"})
	}
	o := &orphanage{s: w.Server, now: w.now, sees: w.sees}
	for _, want := range []int{10, 8, 7, 6} {
		if err := o.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		left := 0
		for i := range 10 {
			if w.has(t, key(i)) {
				left++
			}
		}
		if left != want {
			t.Fatalf("%d are left, want %d", left, want)
		}
		w.at = w.at.Add(DefaultDepartedAfter)
	}
}
