// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"slices"
	"strings"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// Gate says when a retired number may be given again: when nobody can take it
// for its old labels any more.
type Gate struct {
	// Incarnation names the history that positions are of.
	Incarnation string
	// ExpireAfter is how long peers believe our records without hearing from
	// us, and we theirs, as far as their views do not say otherwise; 0 means
	// for ever.
	ExpireAfter time.Duration
	// AtLeast is how long a number stays retired in any case.
	AtLeast time.Duration
	Peers   []*keyspacev1.PeerView
	// CutOff is for how long the caller itself has seen each peer without a
	// connection, by a clock that nobody sets: a wall clock that jumps must not
	// make a peer seem to have forgotten. Peers that are not in it count as
	// just cut off.
	CutOff map[string]time.Duration
	Nodes  []*keyspacev1.NodeStatus
	Now    time.Time
}

// Never is what WaitsFor says of numbers that are not given again.
const Never = "never: a peer without expiry"

// WaitsFor names what a retired number waits for, "" when it may be given again:
// time, peers that have not confirmed the deletion (or, when they are cut off,
// may still believe what they had), and nodes of the own cluster that have not
// seen it.
func (g Gate) WaitsFor(r Retired) string {
	var waits []string
	least := g.AtLeast
	for _, p := range g.Peers {
		expire := g.expireAfter(p)
		if expire == 0 {
			return Never + " (" + p.GetPeer() + ")"
		}
		least = max(least, expire)
	}
	if left := least - g.Now.Sub(r.Since); left > 0 {
		waits = append(waits, left.Round(time.Second).String())
	}
	for _, p := range g.Peers {
		if !g.peerForgot(p, r) {
			waits = append(waits, "peer "+p.GetPeer())
		}
	}
	for _, n := range g.Nodes {
		if n.GetIncarnation() != g.Incarnation || n.GetSeen()[string(kvstore.KindIdentity)] < r.Revision {
			waits = append(waits, "node "+n.GetNode())
		}
	}
	slices.SortStableFunc(waits, func(a, b string) int { return strings.Compare(kindOf(a), kindOf(b)) })
	return strings.Join(waits, ", ")
}

// kindOf sorts times before nodes before peers.
func kindOf(wait string) string {
	word, _, found := strings.Cut(wait, " ")
	if !found {
		return ""
	}
	return word
}

func (g Gate) peerForgot(p *keyspacev1.PeerView, r Retired) bool {
	if a := p.GetAcknowledged(); a.GetIncarnation() == g.Incarnation && a.GetRevision() >= r.Revision {
		return true
	}
	return !p.GetConnected() && min(g.Now.Sub(time.Unix(0, p.GetSince())), g.CutOff[p.GetPeer()]) >= g.expireAfter(p)
}

// expireAfter is the longer of how long a peer believes our records without
// hearing from us and how long we believe its; 0 means for ever.
func (g Gate) expireAfter(p *keyspacev1.PeerView) time.Duration {
	ours, theirs := g.ExpireAfter, g.ExpireAfter
	if p.ExpireAfter != nil {
		ours, theirs = time.Duration(p.GetExpireAfter()), time.Duration(p.GetExpireAfter())
	}
	if p.BelievedFor != nil {
		theirs = time.Duration(p.GetBelievedFor())
	}
	if ours == 0 || theirs == 0 {
		return 0
	}
	return max(ours, theirs)
}
