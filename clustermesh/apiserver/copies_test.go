// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"maps"
	"testing"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// Of a peer whose stream this API server has not, the copy is counted as it is;
// of one whose stream it has, it knows better.
func TestCopiesAreCounted(t *testing.T) {
	s := start(t, testConfig(t))
	var ops []kvstore.Op
	put := func(k kvstore.Key) { ops = append(ops, kvstore.Put(k.String(), []byte("x"))) }
	put(kvstore.NewKey(kvstore.State, "west", kvstore.KindCluster))
	for i := range 3 {
		put(kvstore.NewKey(kvstore.State, "west", kvstore.KindIP, fmt.Sprintf("10.2.0.%d/32", i)))
	}
	put(kvstore.NewKey(kvstore.State, "west", kvstore.KindNode, "w1"))
	put(kvstore.NewKey(kvstore.State, "westend", kvstore.KindNode, "another's"))
	ops = append(ops, kvstore.Put(kvstore.Prefix(kvstore.State, "west")+"novelty/of-a-later-version", []byte("x")))
	if _, err := s.client.Txn(t.Context(), nil, ops, nil); err != nil {
		t.Fatal(err)
	}
	known := func() map[string]uint64 { return map[string]uint64{"ips": 9} }
	want := map[string]uint64{"cluster": 1, "ips": 3, "nodes": 1}
	for name, c := range map[string]struct {
		p    *hawserv1.PeerStatus
		keys uint64
		kind map[string]uint64
	}{
		"lost since before it started": {&hawserv1.PeerStatus{Name: "west", State: "lost", Replica: s.cfg.Replica}, 6, want},
		"another has its stream":       {&hawserv1.PeerStatus{Name: "west", State: "connected", Replica: "other", Keys: 9, KeysByKind: known()}, 6, want},
		"this one has it":              {&hawserv1.PeerStatus{Name: "west", State: "connected", Replica: s.cfg.Replica, Keys: 9, KeysByKind: known()}, 9, known()},
		"never heard":                  {&hawserv1.PeerStatus{Name: "north", State: "connecting", Replica: s.cfg.Replica}, 0, map[string]uint64{}},
	} {
		if err := s.countCopies(t.Context(), []*hawserv1.PeerStatus{c.p}); err != nil {
			t.Fatal(err)
		}
		if c.p.GetKeys() != c.keys || !maps.Equal(c.p.GetKeysByKind(), c.kind) {
			t.Errorf("%s: %d keys, %v; want %d, %v", name, c.p.GetKeys(), c.p.GetKeysByKind(), c.keys, c.kind)
		}
	}
}
