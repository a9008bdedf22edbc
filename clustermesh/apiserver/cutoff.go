// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"sync"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

// cutOffs remembers since when this process has seen each peer without a
// connection. Its times are monotonic (time.Time.Sub), so that a clock that is
// set, or a PeerView written by a replica whose clock is wrong, shortens
// nothing. A restart begins to count anew.
type cutOffs struct {
	mu   sync.Mutex
	seen map[string]cutOff
}

type cutOff struct {
	since int64 // PeerView.Since: which cut it is
	first time.Time
}

// note takes in what is known of the peers and returns how long each has been
// cut off.
func (c *cutOffs) note(peers []*keyspacev1.PeerView, now time.Time) map[string]time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	next, out := map[string]cutOff{}, map[string]time.Duration{}
	for _, p := range peers {
		if p.GetConnected() {
			continue
		}
		was, ok := c.seen[p.GetPeer()]
		if !ok || was.since != p.GetSince() {
			was = cutOff{since: p.GetSince(), first: now}
		}
		next[p.GetPeer()], out[p.GetPeer()] = was, now.Sub(was.first)
	}
	c.seen = next
	return out
}
