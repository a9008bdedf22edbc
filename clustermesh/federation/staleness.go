// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

// What the age of a peer's data makes of it.
const (
	dataFresh   = "fresh"
	dataStale   = "stale"   // the last resort
	dataExpired = "expired" // not believed
)

// current notes that nothing is missing that the peer knew when the stream began.
func (p *peerState) current() {
	p.do(func() {
		if p.session != nil {
			p.complete, p.freshAt = true, p.now()
		}
	})
}

// data is the verdict on the age of what we have of the peer, and since when it
// is that: a peer's data is as old as the moment when it was last known to be
// complete. A stream alone makes it no younger: what happened meanwhile must have
// arrived.
func (p *peerState) data(lostAfter time.Duration, a ages) (verdict string, since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dataLocked(lostAfter, a)
}

func (p *peerState) dataLocked(lostAfter time.Duration, a ages) (string, time.Time) {
	now := p.now()
	if p.session != nil && p.complete && time.Since(p.heard) <= lostAfter {
		p.freshAt = now
	}
	verdict, since := dataFresh, p.dataSince
	switch age := now.Sub(p.freshAt); {
	case a.expire > 0 && age >= a.expire:
		verdict, since = dataExpired, p.freshAt.Add(a.expire)
	case age >= a.stale:
		verdict, since = dataStale, p.freshAt.Add(a.stale)
	}
	if verdict != p.verdict {
		if verdict == dataFresh {
			since = now
		}
		p.verdict = verdict
	}
	p.dataSince = since
	return verdict, since
}

// adopt takes over what was said of the peer by who wrote its view before: a peer
// that was lost then is lost since then.
func (p *peerState) adopt(v *keyspacev1.PeerView) {
	p.do(func() {
		if v.GetPosition() != nil {
			p.position = v.GetPosition()
		}
		if v.GetAcknowledged() != nil {
			p.acked = v.GetAcknowledged()
		}
		if p.everUp && p.elsewhere == nil {
			return
		}
		p.everUp, p.heard = true, time.Now()
		p.lastBy, p.last = v.GetDialledBy(), v.GetAddress()
		if at := v.GetCertificateExpiresAt(); at != 0 {
			p.certExpires = time.Unix(0, at)
		}
		// How long nobody of us was there to hear the peer is no age of its data.
		p.since, p.freshAt = p.now(), p.now()
		if !v.GetConnected() {
			p.since = time.Unix(0, v.GetSince())
		}
		p.verdict, p.dataSince = v.GetData(), time.Unix(0, v.GetDataSince())
		switch {
		case v.GetConnected() && v.GetData() == dataFresh:
		case v.GetFreshAt() != 0:
			p.freshAt = time.Unix(0, v.GetFreshAt())
		default:
			p.freshAt = p.since
		}
	})
}
