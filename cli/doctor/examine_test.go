// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"errors"
	"strings"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

// healthy is a cluster in which nothing is wrong.
func healthy() Snapshot {
	now := time.Unix(1_800_000_000, 0)
	year := now.Add(365 * 24 * time.Hour).UnixNano()
	return Snapshot{
		Cluster: "east", Now: now,
		Status: &hawserv1.ClusterStatusReport{Version: "v1", CaExpiresAt: year, FederationEndpoints: []string{"192.0.2.1:4243"}, EtcdEndpoint: "192.0.2.1:2379"},
		Peers:  []*hawserv1.PeerStatus{{Name: "west", State: "connected", Since: now.Add(-time.Minute).UnixNano(), Data: "fresh", CertificateExpiresAt: year}},
		Clock:  &Clock{Offset: time.Millisecond, Unsure: time.Millisecond},
		Preflights: map[string]*hawserv1.JoinResponse{"west": {Handshakes: []*hawserv1.Handshake{
			{Endpoint: "192.0.2.9:4243", Certificate: "spiffe://west/apiserver", Issuer: "west", ExpiresAt: now.UnixNano()},
		}}},
		Members: []*hawserv1.NodeInfo{
			{Cluster: "east", Name: "n1", State: "present", Mtu: 1500}, {Cluster: "west", Name: "w1", State: "remote", Mtu: 1500},
		},
		Nodes: []Node{{
			Name: "n1", Status: &hawserv1.NodeStatusReport{Version: "v1", TunnelPort: 8472, Enrolled: true, CertificateExpiresAt: year},
			Maps:  []*hawserv1.Map{{Name: "ct4", Type: "Hash", Entries: 7, MaxEntries: 10}, {Name: "nodes", Type: "Array", Entries: 9, MaxEntries: 9}},
			Drops: []*hawserv1.DropCounter{{Reason: "policy denied", Packets: 4}, {Reason: "unknown sender"}},
		}},
	}
}

func TestNothingIsWrong(t *testing.T) {
	for _, f := range Examine(healthy()) {
		if f.Severity != OK {
			t.Errorf("finding %+v", f)
		}
	}
	want := []string{"4243/tcp", "2379/tcp", "4244/tcp", "7946/tcp+udp", "53/tcp+udp", "8472/udp"}
	for i, p := range ports(healthy()) {
		if p.Port != want[i] {
			t.Errorf("port %+v, want %s", p, want[i])
		}
	}
}

func TestEachFault(t *testing.T) {
	day := 24 * time.Hour
	for name, c := range map[string]struct {
		fault    func(*Snapshot)
		severity Severity
		check    string
		says     string
	}{
		"API server down": {func(s *Snapshot) { s.Status, s.Err = nil, errors.New("no socket") }, Problem, "reachability", "no socket"},
		"own problem":     {func(s *Snapshot) { s.Status.Problems = []*hawserv1.Problem{{Object: "disk", Problem: "full"}} }, Problem, "health", "full"},
		"CA ends":         {func(s *Snapshot) { s.Status.CaExpiresAt = s.Now.Add(day).UnixNano() }, Warning, "certificate", "expires in"},
		"peer lost":       {func(s *Snapshot) { s.Peers[0].State, s.Peers[0].LastError = "lost", "refused" }, Problem, "federation", "lost for 1m"},
		"peer gone":       {func(s *Snapshot) { s.Peers[0].State = "gone" }, Warning, "federation", "gone for 1m"},
		"peer pending":    {func(s *Snapshot) { s.Peers[0].State = "pending" }, Warning, "federation", "half"},
		"lag":             {func(s *Snapshot) { s.Peers[0].LagSeconds = 9 }, Warning, "lag", "9.0 s"},
		"refused": {func(s *Snapshot) {
			s.Peers[0].Refused, s.Peers[0].RefusedNow = map[string]uint64{"range": 3}, 2
		}, Warning, "refused records", "2 records are refused as they are now; since the API server started: 3 range"},
		"stream refused of late": {func(s *Snapshot) {
			s.Peers[0].Refused, s.Peers[0].RefusedAt = map[string]uint64{"hello": 1}, s.Now.Add(-2*time.Minute).UnixNano()
		}, Warning, "refused records", "was refused 2m"},
		"peer's certificate":             {func(s *Snapshot) { s.Peers[0].CertificateExpiresAt = s.Now.Add(-day).UnixNano() }, Problem, "certificate", "expired"},
		"node absent, not asked":         {func(s *Snapshot) { s.Members[0].State, s.Nodes = "absent", nil }, Problem, "node", "agent is down, or"},
		"node absent, its agent answers": {func(s *Snapshot) { s.Members[0].State = "absent" }, Problem, "node", "its agent runs, but is cut off"},
		"node dead":                      {func(s *Snapshot) { s.Members[1].Health = "dead" }, Problem, "node", "its cluster says: dead"},
		"node unreadable":                {func(s *Snapshot) { s.Members[1].Problem, s.Members[1].Mtu = "its record cannot be read: decode", 0 }, Problem, "node", "its record cannot be read: decode"},
		"MTU":                            {func(s *Snapshot) { s.Members[1].Mtu = 9000 }, Warning, "MTU", "1500 on n1; 9000 on w1"},
		"API server's clock":             {func(s *Snapshot) { s.Clock = &Clock{Offset: -time.Minute, Unsure: time.Second} }, Warning, "clock", "59s behind"},
		"node's clock":                   {func(s *Snapshot) { s.Nodes[0].Clock = &Clock{Offset: time.Hour} }, Warning, "clock", "1h0m ahead of"},
		"API server's certificate":       {func(s *Snapshot) { s.Status.CertificateExpiresAt = s.Now.Add(day).UnixNano() }, Warning, "certificate", "expires in"},
		"peer unreached from here": {func(s *Snapshot) {
			s.Preflights["west"].Handshakes[0] = &hawserv1.Handshake{Endpoint: "192.0.2.9:4243", Problem: "i/o timeout"}
		}, Warning, "TLS", "no handshake: i/o timeout"},
		"tunnels, when no node can be asked": {func(s *Snapshot) {
			s.Preflights["west"].Findings = []*hawserv1.Finding{{Check: "tunnel", Problem: "none of its nodes answers", Fix: "open the port"}}
		}, Warning, "tunnel", "none of its nodes"},
		"another CA": {func(s *Snapshot) {
			s.Preflights["west"].Handshakes[0].Problem = "signed by unknown authority"
		}, Warning, "TLS", "it shows spiffe://west/apiserver of CA \"west\", valid until 2027-01-15: signed by unknown authority"},
		"two that clash": {func(s *Snapshot) {
			s.Preflights["west"].Findings = []*hawserv1.Finding{{Check: "pod-cidr-overlap", Blocking: true, Problem: "overlaps", Fix: "change it"}, {Check: "reach", Problem: "as above", Fix: "x"}}
		}, Problem, "pod-cidr-overlap", "overlaps"},
		"agent down": {func(s *Snapshot) { s.Nodes[0].Status, s.Nodes[0].Err = nil, errors.New("nothing answers") }, Problem, "reachability", "nothing answers"},
		"agent's problem": {func(s *Snapshot) {
			s.Nodes[0].Status.Problems = []*hawserv1.Problem{{Object: "table x", Problem: "no room"}}
		}, Problem, "health", "no room"},
		"version":             {func(s *Snapshot) { s.Nodes[0].Status.Version = "v0" }, Warning, "version", "runs v0"},
		"node's certificate":  {func(s *Snapshot) { s.Nodes[0].Status.CertificateExpiresAt = s.Now.Add(day).UnixNano() }, Warning, "certificate", "expires in"},
		"map nearly full":     {func(s *Snapshot) { s.Nodes[0].Maps[0].Entries = 9 }, Warning, "map pressure", "9 of 10"},
		"map full":            {func(s *Snapshot) { s.Nodes[0].Maps[0].Entries = 10 }, Problem, "map pressure", "10 of 10"},
		"tunnelled by no one": {func(s *Snapshot) { s.Nodes[0].Drops[1].Packets = 2 }, Warning, "drops", "2 packets"},
	} {
		t.Run(name, func(t *testing.T) {
			s := healthy()
			c.fault(&s)
			n := 0
			for _, f := range Examine(s) {
				if f.Severity == OK {
					continue
				}
				n++
				if f.Severity != c.severity || f.Check != c.check || !strings.Contains(f.Cause, c.says) || f.Object == "" {
					t.Errorf("finding %+v", f)
				}
				if f.Next == "" && f.Check != "health" { // the program's own word there
					t.Errorf("no next step: %+v", f)
				}
			}
			if n != 1 {
				t.Errorf("%d findings, want 1", n)
			}
		})
	}
}

// What was mended is no fault: records that were refused once, and a node that
// was forgotten while others still list the way to it.
func TestWhatIsMendedIsQuiet(t *testing.T) {
	s := healthy()
	s.Peers[0].Refused, s.Peers[0].LastRefused = map[string]uint64{"range": 3}, []string{"key: range: 10.9.0.0/16"}
	s.Peers[0].RefusedAt = s.Now.Add(-time.Hour).UnixNano()
	s.Nodes[0].Paths = []*hawserv1.NodePath{{Cluster: "east", Node: "n2", Path: "down"}}
	for _, f := range append(Examine(s), Ways([]Snapshot{s})...) {
		if f.Severity != OK {
			t.Errorf("finding %+v", f)
		}
	}
}

// A node whose agent runs is not to be forgotten: what its agent says is the cure.
func TestCutOffNodeIsNotForgotten(t *testing.T) {
	s := healthy()
	s.Members[0].State = "absent"
	s.Nodes[0].Status.Problems = []*hawserv1.Problem{{Object: "keyspace 192.0.2.1:2379", Problem: "not admitted: another CA", Fix: "hawser node invite n1"}}
	n := 0
	for _, f := range Examine(s) {
		if f.Severity == OK {
			continue
		}
		n++
		if !strings.Contains(f.Cause, "another CA") || f.Next != "hawser node invite n1" {
			t.Errorf("finding %+v", f)
		}
	}
	if n != 2 { // the cluster's and the agent's own
		t.Errorf("%d findings, want 2", n)
	}
}

// What to do about a peer depends on why it is not there.
func TestNextStepOfAPeerThatIsNotThere(t *testing.T) {
	const other, refused = "verify certificate: x509: certificate signed by unknown authority", "stream to 192.0.2.9:4243: remote error: tls: bad certificate"
	declared := func(p *hawserv1.PeerStatus) { p.Declared, p.Data, p.Endpoints = true, "", []string{"192.0.2.9:4243"} }
	for _, c := range []struct {
		state, why, next, not string
		set                   func(*hawserv1.PeerStatus)
	}{
		{"lost", "connection refused", "port 4243", "token", nil},
		{"lost", "connection refused", "the data stays meanwhile", "nothing of it is here", nil},
		{"lost", other, "join again by a token", "port 4243", nil},
		{"lost", refused, "it has joined this cluster", "port 4243", nil},
		{"gone", "nothing of it is left in the etcd", "hawser mesh leave west", "port 4243", nil},
		{"connecting", "connection refused", "runs at 192.0.2.9:4243 and that port 4243", "data stays", declared},
		{"connecting", "connection refused", "its own --peers-file declares this cluster", "token", declared},
		{"connecting", "connection refused", "nothing of it is here until then", "token", declared},
		{"connecting", other, "put what hawser mesh declare prints there into the file", "token", declared},
		{"connecting", refused, "its own --peers-file declares this cluster", "runs at", declared},
		{"connecting", "", "it must dial", "runs at", func(p *hawserv1.PeerStatus) { declared(p); p.Endpoints = nil }},
	} {
		s := healthy()
		s.Peers[0].State, s.Peers[0].LastError = c.state, c.why
		if c.set != nil {
			c.set(s.Peers[0])
		}
		found := false
		for _, f := range Examine(s) {
			if f.Check == "federation" {
				found = strings.Contains(f.Next, c.next) && !strings.Contains(f.Next, c.not)
			}
		}
		if !found {
			t.Errorf("%s, %s: the next step does not say %q, or says %q", c.state, c.why, c.next, c.not)
		}
	}
}
