// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"strings"
	"testing"
	"time"
)

// What a peer showed on its last stream outlives a restart while it is lost.
func TestLostPeerAfterARestart(t *testing.T) {
	a, b := pair(t)
	before := a.status(b)
	if before.GetCertificateExpiresAt() == 0 || before.GetDeclared() {
		t.Fatalf("connected: %v", before)
	}
	eventually(t, "in its view", func() bool { return a.viewOf(b.name).GetCertificateExpiresAt() == before.GetCertificateExpiresAt() })
	isolate(a, b)
	eventually(t, "lost", func() bool { return a.status(b).GetState() == stateLost && !a.viewOf(b.name).GetConnected() })
	a.restart()
	eventually(t, "still lost", func() bool { return a.status(b).GetState() == stateLost })
	if s := a.status(b); s.GetCertificateExpiresAt() != before.GetCertificateExpiresAt() || s.GetData() != dataFresh || s.GetPositionRevision() == 0 {
		t.Errorf("after the restart: certificate until %d, want %d; data %q, revision %d", s.GetCertificateExpiresAt(), before.GetCertificateExpiresAt(), s.GetData(), s.GetPositionRevision())
	}
}

// A declared peer that was never reached has no data that could be of any age,
// however long it takes.
func TestDeclaredPeerThatWasNeverHeard(t *testing.T) {
	later := &clock{}
	a := newCluster(t, 1, func(c *testCluster) { c.now = later.now })
	b := newCluster(t, 2)
	b.proxy.cut(true)
	if w := declare(t, a, declaration(b)); len(w) > 0 {
		t.Fatal(w)
	}
	eventually(t, "dialled in vain", func() bool { return a.status(b).GetLastError() != "" })
	later.advance(100 * time.Hour)
	s := a.status(b)
	if s.GetState() != stateConnecting || s.GetData() != "" || s.GetDataSince() != 0 || !s.GetDeclared() || len(s.GetFindings()) != 0 || len(s.GetEndpoints()) != 1 {
		t.Errorf("never heard: %v", s)
	}
	// It can be reached, and does not admit us: that is another cause.
	b.proxy.heal()
	eventually(t, "refused by it", func() bool { return strings.Contains(a.status(b).GetLastError(), "remote error: tls: ") })
	if w := declare(t, b, declaration(a)); len(w) > 0 {
		t.Fatal(w)
	}
	connected(t, a, b)
	if s := a.status(b); s.GetData() != dataFresh || !s.GetDeclared() {
		t.Errorf("connected: %v", s)
	}
}
