// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/kvstore"
)

// TestFullMesh: one cluster federates with as many as its cluster bits allow:
// each gets its keys, and it gets those of each.
func TestFullMesh(t *testing.T) {
	const bits = 8
	hub := newCluster(t, 1, small(bits))
	identityKey := kvstore.NewKey(kvstore.State, hub.name, kvstore.KindIdentity, kvstore.NumberName(1<<16+9))
	hub.identity(1<<16+9, "mesh:cluster="+hub.name)
	space, err := identity.NewSpace(bits)
	if err != nil {
		t.Fatal(err)
	}
	var ps []*player
	for id := uint32(2); id <= space.MaxCluster(); id++ {
		ps = append(ps, hub.admit(id, bits))
	}
	if len(ps) != 254 {
		t.Fatalf("%d peers beside our own cluster, not 254", len(ps))
	}
	var g errgroup.Group
	g.SetLimit(16)
	for _, p := range ps {
		g.Go(func() error { p.connect(); p.first(); return nil })
	}
	_ = g.Wait()
	hub.identity(1<<16+10, "mesh:cluster="+hub.name) // to all who are connected
	for _, p := range ps {
		eventually(t, p.name+" has our identities", func() bool {
			_, first := p.has(identityKey.Relative())
			_, second := p.has("identities/id/65546")
			return first && second
		})
	}
	eventually(t, "all are connected and copied", func() bool { return hub.m.Ready() == nil })
	if n := len(hub.m.Status()); n != len(ps) {
		t.Errorf("%d peers in status", n)
	}
	for _, p := range ps {
		if s := p.status(); s.GetKeys() != 1 || len(s.GetRefused()) != 0 || s.GetSnapshotsReceived() != 1 {
			t.Errorf("%s: %v", p.name, s)
		}
	}
}

// TestNumbersByClusterBits: with each division every cluster has a range of its
// own, the last one too, and the number after the last is no cluster's.
func TestNumbersByClusterBits(t *testing.T) {
	for bits, most := range map[uint32]uint32{8: 255, 9: 511, 10: 1023} {
		var end uint32
		var peers []*keyspacev1.Peer
		for id := uint32(1); id <= most; id++ {
			c := describeSmall(fmt.Sprintf("c%04d", id), id, bits)
			g, err := peering.GrantFor(c)
			if err != nil {
				t.Fatalf("%d bits, cluster %d: %v", bits, id, err)
			}
			if g.GetIdentityMin() <= end || g.GetIdentityMax() < g.GetIdentityMin() || g.GetIdentityMax() >= 1<<24 {
				t.Fatalf("%d bits, cluster %d: identities %d-%d, the one before ends at %d", bits, id, g.GetIdentityMin(), g.GetIdentityMax(), end)
			}
			end = g.GetIdentityMax()
			peers = append(peers, &keyspacev1.Peer{Name: c.GetName(), ClusterId: id, Grant: g, State: keyspacev1.Peer_STATE_CONFIRMED})
		}
		if _, err := peering.GrantFor(describeSmall("more", most+1, bits)); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("1-%d", most)) {
			t.Errorf("%d bits: cluster %d: %v", bits, most+1, err)
		}
		if _, err := peering.GrantFor(describeSmall("none", 0, bits)); err == nil {
			t.Errorf("%d bits: cluster 0 is granted something", bits)
		}
		// A full mesh has no number for one more.
		own := describeSmall("own", most, bits)
		for id := uint32(1); id <= most; id++ {
			fs := peering.Preflight(peering.Side{Own: own, Peers: peers[:most-1], Now: time.Now()}, peering.Candidate{Cluster: describeSmall("new", id, bits)})
			if !peering.Blocks(fs) {
				t.Fatalf("%d bits: a second cluster %d may join", bits, id)
			}
		}
	}
	other := peering.Preflight(peering.Side{Own: describeSmall("own", 1, 8), Now: time.Now()}, peering.Candidate{Cluster: describeSmall("new", 2, 10)})
	if !peering.Blocks(other) || other[0].GetCheck() != "cluster-bits" {
		t.Errorf("another division of numbers is admitted: %v", other)
	}
}
