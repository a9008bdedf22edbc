// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/kvstore"
)

// TestFullMesh: one cluster federates with as many as its cluster bits allow:
// each gets its keys, and it gets those of each. HAWSER_MESH_BITS=9 or 10 makes it
// one of 511 or 1,023.
func TestFullMesh(t *testing.T) {
	bits := uint32(8)
	if text := os.Getenv("HAWSER_MESH_BITS"); text != "" {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		bits = uint32(n)
	}
	hub := newCluster(t, 1, small(bits))
	first := uint32(1)<<(24-bits) + 9
	a, b := kvstore.NumberName(first), kvstore.NumberName(first+1)
	hub.identity(first, "mesh:cluster="+hub.name)
	space, err := identity.NewSpace(bits)
	if err != nil {
		t.Fatal(err)
	}
	var ps []*player
	for id := uint32(2); id <= space.MaxCluster(); id++ {
		ps = append(ps, hub.admit(id, bits))
	}
	if want := map[uint32]int{8: 254, 9: 510, 10: 1022}[bits]; len(ps) != want {
		t.Fatalf("%d peers beside our own cluster, not %d", len(ps), want)
	}
	var g errgroup.Group
	g.SetLimit(16)
	for _, p := range ps {
		g.Go(func() error { p.connect(); p.first(); return nil })
	}
	_ = g.Wait()
	hub.identity(first+1, "mesh:cluster="+hub.name) // to all who are connected
	for _, p := range ps {
		eventually(t, p.name+" has our identities", func() bool {
			if err := p.fault(); err != nil {
				t.Fatalf("%s: its stream ended: %v", p.name, err)
			}
			_, early := p.has("identities/id/" + a)
			_, late := p.has("identities/id/" + b)
			return early && late
		})
	}
	eventually(t, "all are connected and copied", func() bool { return hub.m.Ready() == nil })
	all := map[string]*hawserv1.PeerStatus{}
	for _, s := range hub.m.Status() {
		all[s.GetName()] = s
	}
	if len(all) != len(ps) {
		t.Errorf("%d peers in status", len(all))
	}
	for _, p := range ps {
		if s := all[p.name]; s.GetKeys() != 1 || len(s.GetRefused()) != 0 || s.GetSnapshotsReceived() != 1 {
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
