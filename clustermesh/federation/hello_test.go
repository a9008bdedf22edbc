// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"slices"
	"strings"
	"testing"
	"time"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

func TestNegotiate(t *testing.T) {
	peer := &keyspacev1.Peer{Name: "west", ClusterId: 2}
	for _, c := range []struct {
		name string
		edit func(*federationv1.Hello)
		says string // empty: agreed
		caps []string
	}{
		{"the same release", func(*federationv1.Hello) {}, "", []string{capExpireAfter, capExplain}},
		{"a later one, that still speaks ours", func(h *federationv1.Hello) {
			h.ProtocolMax, h.Version = 2, "v0.2.0"
			h.Capabilities = append(h.Capabilities, "later")
		}, "", []string{capExpireAfter, capExplain}},
		{"an earlier one", func(h *federationv1.Hello) { h.Capabilities, h.Version = nil, "v0.0.9" }, "", nil},
		{"a development build", func(h *federationv1.Hello) { h.Version = "3d5f1c" }, "", []string{capExpireAfter, capExplain}},
		{"two minor versions apart", func(h *federationv1.Hello) { h.Version = "v0.3.0" }, "may differ by one minor version", nil},
		{"another major version", func(h *federationv1.Hello) { h.Version = "v1.1.0" }, "may differ by one minor version", nil},
		{"too new", func(h *federationv1.Hello) { h.ProtocolMin, h.ProtocolMax = 2, 3 }, "speaks protocol 2 to 3, we (version v0.1.0) 1 to 1", nil},
		{"too old", func(h *federationv1.Hello) { h.ProtocolMin, h.ProtocolMax = 0, 0 }, "upgrade the older cluster", nil},
		{"no range", func(h *federationv1.Hello) { h.ProtocolMin, h.ProtocolMax = 2, 1 }, "says that it speaks protocol 2 to 1", nil},
		{"another name", func(h *federationv1.Hello) { h.Cluster = "south" }, `calls itself "south"`, nil},
		{"another id", func(h *federationv1.Hello) { h.ClusterId = 3 }, "with cluster id 3; it joined as", nil},
		{"no incarnation", func(h *federationv1.Hello) { h.Incarnation = "" }, "incarnation", nil},
		{"too many capabilities", func(h *federationv1.Hello) { h.Capabilities = make([]string, 65) }, "more than 64 capabilities", nil},
		{"an endless capability", func(h *federationv1.Hello) { h.Capabilities = []string{strings.Repeat("x", 65)} }, "capabilities", nil},
		{"an endless version", func(h *federationv1.Hello) { h.Version = "v9.9." + strings.Repeat("9", 1<<20) }, "may differ", nil},
	} {
		h := helloOf(&keyspacev1.Cluster{Name: "west", Id: 2, Version: "v0.1.0", Endpoints: []string{"192.0.2.1:4243"}}, "i", time.Hour)
		c.edit(h)
		a, err := negotiate(peer, "v0.1.0", h)
		if c.says == "" {
			if err != nil || a.protocol != 1 || !slices.Equal(a.capabilities, c.caps) || a.incarnation != "i" || len(a.endpoints) != 1 {
				t.Errorf("%s: %+v, %v", c.name, a, err)
			}
			if told := a.believedFor != nil; told != a.has(capExpireAfter) || told && *a.believedFor != time.Hour {
				t.Errorf("%s: believed for %v", c.name, a.believedFor)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.says) || len(err.Error()) > 1000 {
			t.Errorf("%s: %.1000v, want %q", c.name, err, c.says)
		}
	}
	if _, err := negotiate(peer, "v0.1.0", nil); err == nil || !strings.Contains(err.Error(), "did not begin with a hello") {
		t.Errorf("no hello: %v", err)
	}
}

// TestRefusedHelloIsShown: a stream that is not agreed on is refused with a reason
// that both sides show, and counts on the side that refuses.
func TestRefusedHelloIsShown(t *testing.T) {
	hub := newCluster(t, 1, small(8))
	p := hub.admit(2, 8)
	p.edit = func(h *federationv1.Hello) { h.Version = "v0.4.0" }
	var err error
	eventually(t, "refused", func() bool { err = p.open(); return err != nil && strings.Contains(err.Error(), "minor version") })
	if !strings.Contains(err.Error(), hub.name+" refuses it: p0002 runs version v0.4.0, we v0.1.0") {
		t.Errorf("the peer is told %v", err)
	}
	s := p.status()
	if s.GetRefused()["hello"] != 1 || !strings.Contains(s.GetLastError(), "minor version") || !strings.Contains(strings.Join(s.GetLastRefused(), "\n"), "upgrade the older") {
		t.Errorf("status: %v", s)
	}
	if f := finding(s, "protocol"); f == nil {
		t.Errorf("findings: %v", s.GetFindings())
	}
	p.edit = func(h *federationv1.Hello) { h.Version = "v0.2.0"; h.Capabilities = append(h.Capabilities, "later") }
	p.connect()
	p.first()
	if s := p.status(); s.GetProtocol() != 1 || s.GetVersion() != "v0.2.0" || !slices.Equal(s.GetCapabilities(), capabilities()) {
		t.Errorf("agreed: %v", s)
	}
	if !slices.Equal(p.hello.GetCapabilities(), capabilities()) || p.hello.GetProtocolMin() != protocolMin || p.hello.GetProtocolMax() != protocolMax {
		t.Errorf("our hello: %v", p.hello)
	}
	eventually(t, "how long it believes us is in its view", func() bool {
		v := hub.viewOf(p.name)
		return v.BelievedFor != nil && v.GetBelievedFor() == int64(time.Hour) && v.GetReplica() == "a"
	})
}
