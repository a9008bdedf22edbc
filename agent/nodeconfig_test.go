// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"testing"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// An agent follows what is decided for its own node, and publishes no backend
// before it knows that.
func TestConfigure(t *testing.T) {
	p := &publisher{cfg: &Config{Cluster: "east", Node: "n1"}, log: slog.New(slog.DiscardHandler), changed: make(chan struct{}, 1)}
	config := func(node string, drained bool) store.Change {
		return store.Change{
			Key: kvstore.NewKey(kvstore.Local, "east", kvstore.KindNodeConfig, node), Record: &keyspacev1.NodeConfig{Node: node, Drained: drained},
		}
	}
	for _, c := range []struct {
		what                       string
		batch                      store.Batch
		configured, drained, woken bool
	}{
		{"half a listing", store.Batch{Changes: []store.Change{config("n2", true)}}, false, false, false},
		{"a drained node starts", store.Batch{Changes: []store.Change{config("n1", true)}, Listed: true}, true, true, true},
		{"nothing new", store.Batch{Changes: []store.Change{config("n1", true)}}, true, true, false},
		{"another node's", store.Batch{Changes: []store.Change{config("n2", false)}}, true, true, false},
		{"undrained", store.Batch{Changes: []store.Change{config("n1", false)}}, true, false, true},
		{"drained", store.Batch{Changes: []store.Change{config("n1", true)}}, true, true, true},
		{"deleted", store.Batch{Changes: []store.Change{{Key: config("n1", false).Key, Deleted: true}}}, true, false, true},
		{"listed again", store.Batch{Listed: true}, true, false, false},
	} {
		p.configure(c.batch)
		woken := false
		select {
		case <-p.changed:
			woken = true
		default:
		}
		if p.configured != c.configured || p.drained != c.drained || woken != c.woken {
			t.Errorf("%s: configured %t, drained %t, woken %t", c.what, p.configured, p.drained, woken)
		}
	}
}
