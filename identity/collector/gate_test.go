// SPDX-License-Identifier: Apache-2.0

package collector_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity/collector"
)

func TestGate(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	ago := func(d time.Duration) int64 { return now.Add(-d).UnixNano() }
	peer := func(connected bool, since time.Duration, inc string, acked int64) *keyspacev1.PeerView {
		return &keyspacev1.PeerView{Peer: "west", Connected: connected, Since: ago(since),
			Acknowledged: &keyspacev1.Position{Incarnation: inc, Revision: acked}}
	}
	with := func(v *keyspacev1.PeerView, ours, theirs time.Duration) *keyspacev1.PeerView {
		v.ExpireAfter = proto.Int64(int64(ours))
		if theirs >= 0 {
			v.BelievedFor = proto.Int64(int64(theirs))
		}
		return v
	}
	node := func(inc string, seen int64) *keyspacev1.NodeStatus {
		return &keyspacev1.NodeStatus{Node: "n1", Incarnation: inc, Seen: map[string]int64{"identities/id": seen}}
	}
	for name, c := range map[string]struct {
		gate collector.Gate
		age  time.Duration
		want string
	}{
		"nobody to wait for": {collector.Gate{}, 0, ""},
		"time":               {collector.Gate{AtLeast: time.Hour}, 20 * time.Minute, "40m0s"},
		"peer never expires": {collector.Gate{Peers: []*keyspacev1.PeerView{peer(true, 0, "i", 200)}}, 1000 * time.Hour, collector.Never + " (west)"},
		"a peer's own setting counts": {
			collector.Gate{ExpireAfter: time.Hour, Peers: []*keyspacev1.PeerView{with(peer(true, 0, "i", 200), 5*time.Hour, -1)}}, 2 * time.Hour, "3h0m0s"},
		"so does how long the peer believes us": {
			collector.Gate{ExpireAfter: time.Hour, Peers: []*keyspacev1.PeerView{with(peer(true, 0, "i", 200), time.Hour, 5*time.Hour)}}, 2 * time.Hour, "3h0m0s"},
		"a peer that believes us for ever": {
			collector.Gate{ExpireAfter: time.Hour, Peers: []*keyspacev1.PeerView{with(peer(true, 0, "i", 200), time.Hour, 0)}}, 1000 * time.Hour, collector.Never + " (west)"},
		"the longest of several": {
			collector.Gate{ExpireAfter: time.Hour, Peers: []*keyspacev1.PeerView{peer(true, 0, "i", 200), with(peer(true, 0, "i", 200), 3*time.Hour, time.Minute)}},
			2 * time.Hour, "1h0m0s"},
		"cut off, for less than it believes us": {
			collector.Gate{ExpireAfter: time.Hour, Peers: []*keyspacev1.PeerView{with(peer(false, 3*time.Hour, "i", 99), time.Hour, 4*time.Hour)}}, 48 * time.Hour, "peer west"},
		"acknowledged, young": {
			collector.Gate{ExpireAfter: 24 * time.Hour, Peers: []*keyspacev1.PeerView{peer(true, 0, "i", 200)}}, time.Hour, "23h0m0s"},
		"acknowledged, old": {
			collector.Gate{ExpireAfter: 24 * time.Hour, Peers: []*keyspacev1.PeerView{peer(true, 0, "i", 100)}}, 24 * time.Hour, ""},
		"connected, behind": {
			collector.Gate{ExpireAfter: 24 * time.Hour, Peers: []*keyspacev1.PeerView{peer(true, 0, "i", 99)}}, 48 * time.Hour, "peer west"},
		"acknowledged in another history": {
			collector.Gate{ExpireAfter: 24 * time.Hour, Peers: []*keyspacev1.PeerView{peer(true, 0, "j", 200)}}, 48 * time.Hour, "peer west"},
		"cut off later than it was retired": {
			collector.Gate{ExpireAfter: 24 * time.Hour, Peers: []*keyspacev1.PeerView{peer(false, time.Hour, "i", 99)}}, 48 * time.Hour, "peer west"},
		"cut off, acknowledged before": {
			collector.Gate{ExpireAfter: 24 * time.Hour, Peers: []*keyspacev1.PeerView{peer(false, time.Hour, "i", 100)}}, 48 * time.Hour, ""},
		"cut off for long": {
			collector.Gate{ExpireAfter: 24 * time.Hour, CutOff: map[string]time.Duration{"west": 24 * time.Hour},
				Peers: []*keyspacev1.PeerView{peer(false, 24*time.Hour, "i", 99)}}, 48 * time.Hour, ""},
		"cut off for long by a clock that jumped": {
			collector.Gate{ExpireAfter: 24 * time.Hour, CutOff: map[string]time.Duration{"west": 23 * time.Hour},
				Peers: []*keyspacev1.PeerView{peer(false, 24*time.Hour, "i", 99)}}, 48 * time.Hour, "peer west"},
		"cut off for long, by a replica that has just begun": {
			collector.Gate{ExpireAfter: 24 * time.Hour, Peers: []*keyspacev1.PeerView{peer(false, 24*time.Hour, "i", 99)}}, 48 * time.Hour, "peer west"},
		"own node behind":             {collector.Gate{Nodes: []*keyspacev1.NodeStatus{node("i", 99)}}, time.Hour, "node n1"},
		"own node of another history": {collector.Gate{Nodes: []*keyspacev1.NodeStatus{node("j", 200)}}, time.Hour, "node n1"},
		"own node has seen it":        {collector.Gate{Nodes: []*keyspacev1.NodeStatus{node("i", 100)}}, time.Hour, ""},
		"a clock that was set back":   {collector.Gate{AtLeast: time.Hour}, -time.Hour, "2h0m0s"},
		"all at once, in a fixed order": {
			collector.Gate{ExpireAfter: 2 * time.Hour, Peers: []*keyspacev1.PeerView{peer(true, 0, "i", 0)}, Nodes: []*keyspacev1.NodeStatus{node("i", 0)}},
			time.Hour, "1h0m0s, node n1, peer west"},
	} {
		c.gate.Incarnation, c.gate.Now = "i", now
		r := collector.Retired{Number: 70000, Since: now.Add(-c.age), Revision: 100}
		if got := c.gate.WaitsFor(r); got != c.want {
			t.Errorf("%s: waits for %q, want %q", name, got, c.want)
		}
	}
}
