// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"errors"
	"strings"
	"testing"
	"time"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
)

// TestDataAges: what we have of a lost peer is fresh, then stale, then expired,
// each told to the agents with its time, and nothing of it is withdrawn. A new
// stream changes that only when it has brought all that was missed.
func TestDataAges(t *testing.T) {
	later := &clock{}
	hub := newCluster(t, 1, small(8), func(c *testCluster) { c.now = later.now })
	p := hub.admit(2, 8)
	p.connect()
	p.first()
	is := func(want string) {
		t.Helper()
		eventually(t, "its view says "+want, func() bool { return hub.viewOf(p.name).GetData() == want })
		eventually(t, "status says "+want, func() bool { return p.status().GetData() == want })
		if n := len(p.seen()); n != 1 {
			t.Errorf("%s: %d keys", want, n)
		}
	}
	is(dataFresh)
	later.advance(100 * time.Hour) // a connected peer has no age
	is(dataFresh)
	hub.hangUp(p)
	lost := later.now()
	is(dataFresh)
	later.advance(5*time.Minute - 5*time.Second)
	time.Sleep(2 * viewEvery) // it must not have changed
	is(dataFresh)
	later.advance(10 * time.Second)
	is(dataStale)
	if since := time.Unix(0, hub.viewOf(p.name).GetDataSince()).Sub(lost); (since - 5*time.Minute).Abs() > 5*time.Second {
		t.Errorf("stale since %s after the loss", since)
	}
	if f := finding(p.status(), "stale"); f == nil || !strings.Contains(f.GetProblem(), "only where no other is left") {
		t.Errorf("findings: %v", p.status().GetFindings())
	}
	later.advance(24 * time.Hour)
	is(dataExpired)
	if f := finding(p.status(), "expired"); f == nil || !strings.Contains(f.GetProblem(), "not believed any more") {
		t.Errorf("findings: %v", p.status().GetFindings())
	}
	hub.restart() // the age is not forgotten
	is(dataExpired)

	p.connect()
	eventually(t, "connected", func() bool { return p.status().GetState() == stateConnected })
	is(dataExpired)
	eventually(t, "subscribed", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.sub != nil })
	p.send(&federationv1.Frame{Body: &federationv1.Frame_Resync{Resync: &federationv1.Resync{
		Mode: federationv1.Resync_MODE_RESUME, Incarnation: "i-" + p.name, Revision: 10, Target: 30}}})
	p.batch(20, false, p.ip(1))
	eventually(t, "half of it", func() bool { return p.status().GetPositionRevision() == 20 })
	is(dataExpired) // there is more to come
	eventually(t, "the view says connected", func() bool { return hub.viewOf(p.name).GetConnected() })
	hub.restart() // now that it is connected
	is(dataExpired)
	p.connect()
	p.resync(federationv1.Resync_MODE_RESUME, 20)
	p.batch(30, false, p.ip(1))
	is(dataFresh)
	if f := p.status().GetFindings(); len(f) != 0 {
		t.Errorf("findings: %v", f)
	}
}

// hangUp ends the stream of a player and waits until the hub has noticed.
func (c *testCluster) hangUp(p *player) {
	c.t.Helper()
	c.m.port.cut(p.name)
	eventually(c.t, p.name+" is lost", func() bool { return p.status().GetState() == stateLost && !c.viewOf(p.name).GetConnected() })
}

// TestAgesByPeer: a peer may be believed for another time than the others, or
// for ever, and that can be changed while it is away.
func TestAgesByPeer(t *testing.T) {
	later := &clock{}
	hub := newCluster(t, 1, small(8), func(c *testCluster) { c.now = later.now; c.cfg.ExpireAfter = time.Hour })
	p, q := hub.admit(2, 8), hub.admit(3, 8)
	for _, one := range []*player{p, q} {
		one.connect()
		one.first()
	}
	if err := hub.m.SetAges(t.Context(), p.name, peering.Ages{Stale: ptr(time.Hour), Expire: ptr(0)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "set", func() bool { s := p.status(); return s.GetStaleAfter() == int64(time.Hour) && s.GetExpireAfter() == 0 })
	if s := p.status(); s.GetState() != stateConnected || s.GetSnapshotsReceived() != 1 {
		t.Errorf("the stream ended: %v", s)
	}
	eventually(t, "in its view, for who retires identities", func() bool {
		v := hub.viewOf(p.name)
		return v.ExpireAfter != nil && v.GetExpireAfter() == 0 && hub.viewOf(q.name).GetExpireAfter() == int64(time.Hour)
	})
	hub.hangUp(p)
	hub.hangUp(q)
	data := func(p, q string, a, b *player) {
		t.Helper()
		eventually(t, p+" and "+q, func() bool { return hub.viewOf(a.name).GetData() == p && hub.viewOf(b.name).GetData() == q })
	}
	later.advance(6 * time.Minute)
	data(dataFresh, dataStale, p, q)
	later.advance(time.Hour)
	data(dataStale, dataExpired, p, q)
	later.advance(10_000 * time.Hour)
	time.Sleep(2 * viewEvery)
	data(dataStale, dataExpired, p, q)
	if err := hub.m.SetAges(t.Context(), p.name, peering.Ages{Expire: ptr(-1)}); err != nil { // the default again
		t.Fatal(err)
	}
	data(dataExpired, dataExpired, p, q)
	if err := hub.m.SetAges(t.Context(), q.name, peering.Ages{Expire: ptr(0)}); err != nil {
		t.Fatal(err)
	}
	data(dataExpired, dataStale, p, q)

	if err := hub.m.SetAges(t.Context(), "nobody", peering.Ages{Stale: ptr(time.Hour)}); !errors.Is(err, peering.ErrNoPeer) {
		t.Errorf("an unknown peer: %v", err)
	}
	if err := hub.m.SetAges(t.Context(), p.name, peering.Ages{Stale: ptr(2 * time.Hour), Expire: ptr(time.Hour)}); err == nil || !strings.Contains(err.Error(), "before it is stale") {
		t.Errorf("expiry before staleness: %v", err)
	}
	if err := hub.m.SetAges(t.Context(), p.name, peering.Ages{Stale: ptr(0)}); err == nil {
		t.Error("stale after 0 was taken")
	}
}

func ptr(d time.Duration) *time.Duration { return &d }
