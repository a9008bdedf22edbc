// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"crypto/tls"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/ports"
	"github.com/hawser-mesh/hawser/kvstore"
)

func has(fs []*federationv1.Finding, check, object string) bool {
	for _, f := range fs {
		if f.GetCheck() == check && (object == "" || f.GetObject() == object) && !f.GetBlocking() && f.GetFix() != "" {
			return true
		}
	}
	return false
}

// Warnings let a join go on, and each side's are shown.
func TestPreflightWarns(t *testing.T) {
	dead := ports.Free(t).String()
	at := &clock{}
	a := newCluster(t, 1, func(c *testCluster) { c.cfg.Cluster.Endpoints = append(c.cfg.Cluster.Endpoints, dead) })
	b := newCluster(t, 2, func(c *testCluster) {
		c.now = at.now
		c.cfg.Cluster.Endpoints = []string{dead}
		c.cfg.Cluster.NodeCidrs = []string{"203.0.113.0/24"}
	})
	at.advance(7 * time.Second)
	for _, c := range []*testCluster{a, b} { // loopback carries 65536 at most
		c.put(kvstore.NewKey(kvstore.State, c.name, kvstore.KindNode, "n1"), &keyspacev1.Node{Name: "n1", Cluster: c.name, Mtu: 70000})
	}
	res, err := b.m.Join(t.Context(), invite(t, a, b.name), true)
	if err != nil || peering.Blocks(res.Findings) {
		t.Fatalf("%v %v", res, err)
	}
	for check, object := range map[string]string{"clock-skew": "", "encryption": "", "path-mtu": ""} {
		if !has(res.Findings, check, object) {
			t.Errorf("no finding %s: %v", check, res.Findings)
		}
	}
	for _, of := range []string{a.name, b.name} { // each has an endpoint that does not answer
		if !has(res.Findings, "reach", of) {
			t.Errorf("nothing on the reach of %s: %v", of, res.Findings)
		}
	}
	// And none of it where all is well.
	c := newCluster(t, 3)
	d := newCluster(t, 4)
	if res, err := d.m.Join(t.Context(), invite(t, c, d.name), true); err != nil || len(res.Findings) != 0 {
		t.Errorf("findings without a cause: %v %v", res.Findings, err)
	}
}

// Ranges of both families are looked at, and one family that only one side has
// is told and stops nothing.
func TestPreflightOfFamilies(t *testing.T) {
	own := describeSmall("own", 1, 8)
	dual := func(id uint32, cidr string) *keyspacev1.Cluster {
		c := describeSmall("new", id, 8)
		c.PodCidrs = append(c.PodCidrs, cidr)
		return c
	}
	look := func(own, c *keyspacev1.Cluster, peers ...*keyspacev1.Peer) []*federationv1.Finding {
		return peering.Preflight(peering.Side{Own: own, Peers: peers, Now: time.Now()}, peering.Candidate{Cluster: c})
	}
	if fs := look(own, describeSmall("new", 2, 8)); has(fs, "ip-families", "") {
		t.Errorf("both without IPv6: %v", fs)
	}
	both := dual(1, "fd00:1::/48")
	both.Name = "own"
	for name, pair := range map[string][2]*keyspacev1.Cluster{"theirs": {own, dual(2, "fd00:2::/48")}, "ours": {both, describeSmall("new", 2, 8)}} {
		if fs := look(pair[0], pair[1]); !has(fs, "ip-families", "") || peering.Blocks(fs) {
			t.Errorf("IPv6 is only %s: %v", name, fs)
		}
	}
	if fs := look(both, dual(2, "fd00:2::/48")); len(fs) != 0 {
		t.Errorf("both with IPv6: %v", fs)
	}
	north := &keyspacev1.Peer{Name: "north", ClusterId: 3, Grant: &keyspacev1.Grant{PodCidrs: []string{"fd00:3::/48"}}}
	for _, cidr := range []string{"fd00:1:0:7::/64", "fd00:1::/47", "fd00:3:0:1::/64"} {
		if fs := look(both, dual(2, cidr), north); len(fs) != 1 || fs[0].GetCheck() != "pod-cidr-overlap" || !fs[0].GetBlocking() {
			t.Errorf("%s: %v", cidr, fs)
		}
	}
	if fs := look(both, dual(2, "::/0")); len(fs) != 1 || fs[0].GetCheck() != "pod-cidr-never-granted" || !fs[0].GetBlocking() {
		t.Errorf("a default route: %v", fs)
	}
}

// Who has a token learns nothing by it of the inviter's network: what is not its
// own API server looks the same, and other addresses are not dialled at all.
func TestATokenShowsNothingOfTheNetwork(t *testing.T) {
	listen := func(at string) (net.Listener, *atomic.Int32) {
		lis, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { lis.Close() })
		var dialled atomic.Int32
		go func() {
			for {
				c, err := lis.Accept()
				if err != nil {
					return
				}
				dialled.Add(1)
				c.Close()
			}
		}()
		return lis, &dialled
	}
	open, tried := listen("127.0.0.1:0")
	elsewhere, never := listen("127.0.0.2:0")
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	// How often one may ask counts by time, of which clusters take some to start.
	at := time.Now()
	still := func(c *testCluster) { c.now = func() time.Time { return at } }
	a := newCluster(t, 1, still)
	ask := func(endpoint string, more ...string) (problem string) {
		t.Helper()
		b := newCluster(t, 2, still, func(c *testCluster) { c.cfg.Cluster.Endpoints = append([]string{endpoint}, more...) })
		res, err := b.m.Join(t.Context(), invite(t, a, b.name), true)
		if err != nil || peering.Blocks(res.Findings) || len(res.Findings) == 0 || res.Findings[0].GetCheck() != "reach" {
			t.Fatalf("%s: %v %v", endpoint, res.Findings, err)
		}
		return strings.ReplaceAll(res.Findings[0].GetProblem(), endpoint, "ENDPOINT")
	}
	toOpen, toClosed := ask(open.Addr().String()), ask(gone.Addr().String())
	if toOpen != toClosed || tried.Load() != 1 {
		t.Errorf("a port that is open and one that is closed differ (%d dials):\n%s\n%s", tried.Load(), toOpen, toClosed)
	}
	if said := ask(elsewhere.Addr().String()); never.Load() != 0 || !strings.Contains(said, "was not tried") {
		t.Errorf("another address was dialled %d times: %s", never.Load(), said)
	}
	ask(gone.Addr().String(), slices.Repeat([]string{gone.Addr().String()}, 7)...)
	ask(gone.Addr().String(), slices.Repeat([]string{gone.Addr().String()}, 5)...)
	if said := ask(open.Addr().String()); tried.Load() != 1 || !strings.Contains(said, "asked too often") {
		t.Errorf("it is asked for ever: %d dials, %s", tried.Load(), said)
	}
}

// A peer is looked at again as it is now.
func TestPreflightOfAPeer(t *testing.T) {
	a, b := pair(t)
	mirrored(t, a, b)
	res, err := a.m.PreflightPeer(t.Context(), b.name)
	if err != nil || len(res.Findings) != 0 || res.Peer.GetName() != b.name {
		t.Errorf("%v %v", res, err)
	}
	p := a.peer(b.name)
	p.Endpoints = []string{ports.Free(t).String()}
	p.Grant.PodCidrs = append(p.Grant.PodCidrs, "10.1.0.0/16")
	res, err = peering.Again(t.Context(), a.m.deps, p, []*keyspacev1.Peer{p}, time.Minute)
	if err != nil || !has(res.Findings, "reach", b.name) || !has(res.Findings, "clock-skew", b.name) || !peering.Blocks(res.Findings) {
		t.Errorf("one that does not fit any more: %v %v", res.Findings, err)
	}
	if _, err := a.m.PreflightPeer(t.Context(), "nobody"); err == nil {
		t.Error("a stranger was looked at")
	}
}

// What a peer's endpoints show is told, whether it is believed or not.
func TestHandshakes(t *testing.T) {
	a, b := pair(t)
	mirrored(t, a, b)
	res, err := a.m.PreflightPeer(t.Context(), b.name)
	if err != nil || len(res.Shakes) != 1 || res.Shakes[0].Err != nil || res.Shakes[0].ID() != "spiffe://"+b.name+"/apiserver" {
		t.Fatalf("%+v %v", res, err)
	}
	serve := func(cfg *tls.Config) string {
		lis, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { lis.Close() })
		go func() {
			for {
				c, err := lis.Accept()
				if err != nil {
					return
				}
				go func() { _ = c.(*tls.Conn).HandshakeContext(t.Context()); _, _ = c.Read(make([]byte, 1)); c.Close() }()
			}
		}()
		return lis.Addr().String()
	}
	stranger, err := pki.NewCA(b.name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	forgetful, err := peering.NewTrust(b.name, b.creds, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := mute.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("220 not what you look for\r\n"))
			c.Close()
		}
	}()
	defer mute.Close()
	leaf, err := credsOf(t, stranger, pki.RoleAPIServer, "").Certificate()
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct{ endpoint, says string }{
		"another CA of that name": {serve(&tls.Config{Certificates: []tls.Certificate{*leaf}, MinVersion: tls.VersionTLS13}), "spiffe://" + b.name + "/apiserver"},
		"it does not know us":     {serve(forgetful.ServerConfig()), "refuses our certificate"},
		"something else":          {mute.Addr().String(), "no TLS handshake"},
	} {
		p := a.peer(b.name)
		p.Endpoints = []string{c.endpoint}
		res, err := peering.Again(t.Context(), a.m.deps, p, []*keyspacev1.Peer{p}, 0)
		if err != nil || !has(res.Findings, "tls", b.name) || !strings.Contains(res.Findings[0].GetProblem(), c.says) {
			t.Errorf("%s: %v %v", what, res.Findings, err)
		}
	}
}

// A CA at the end of its life.
func TestPreflightLooksAtCertificates(t *testing.T) {
	a := newCluster(t, 1)
	ca, err := pki.NewCA("west", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	side := func(now time.Time) peering.Side {
		return peering.Side{Own: a.cfg.Cluster, CA: a.creds.CA(), Now: now}
	}
	candidate := peering.Candidate{Cluster: describe("west", 2, "x:1"), Bundle: credsOf(t, ca, pki.RoleAPIServer, "").CA()}
	ends := ca.Certificate().NotAfter
	if fs := peering.Preflight(side(ends.Add(-60*24*time.Hour)), candidate); len(fs) != 0 {
		t.Errorf("long before its end: %v", fs)
	}
	if fs := peering.Preflight(side(ends.Add(-24*time.Hour)), candidate); !has(fs, "certificate", "") {
		t.Errorf("a day before its end: %v", fs)
	}
	if fs := peering.Preflight(side(ends.Add(time.Hour)), candidate); !peering.Blocks(fs) {
		t.Errorf("after its end: %v", fs)
	}
}
