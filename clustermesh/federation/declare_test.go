// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"strings"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/internal/pki"
)

// declaration is a cluster as the other side's file has it.
func declaration(c *testCluster, edit ...string) string {
	d := c.cfg.Cluster
	ca := strings.ReplaceAll(strings.TrimSpace(string(pki.EncodeCertificate(c.etcd.CA.Certificate()))), "\n", "\n    ")
	text := "apiVersion: hawser.io/v1\nkind: Peer\nmetadata: {name: " + d.GetName() + "}\nspec:\n  id: ID\n  endpoints: [\"" + d.GetEndpoints()[0] +
		"\"]\n  podCIDRs: [" + d.GetPodCidrs()[0] + "]\n  nodeCIDRs: [" + d.GetNodeCidrs()[0] + "]\n  ca: |\n    " + ca + "\n"
	text = strings.ReplaceAll(text, "ID\n", string(rune('0'+d.GetId()))+"\n")
	return strings.NewReplacer(edit...).Replace(text)
}

func declare(t *testing.T, at *testCluster, text string) map[string]error {
	t.Helper()
	var want []peering.Declaration
	var err error
	if text != "" {
		if want, err = peering.ParseDeclarations([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	wrong, err := at.m.Declare(t.Context(), want, nil)
	if err != nil {
		t.Fatal(err)
	}
	return wrong
}

func TestDeclaredPeers(t *testing.T) {
	a, b := newCluster(t, 1), newCluster(t, 2)
	b.fill(0, 10)
	for range 2 { // the second changes nothing
		if w := declare(t, a, declaration(b)); len(w) > 0 {
			t.Fatal(w)
		}
		if w := declare(t, b, declaration(a)); len(w) > 0 {
			t.Fatal(w)
		}
	}
	connected(t, a, b)
	mirrored(t, a, b)
	wider := declaration(b, "podCIDRs: [10.2.0.0/16]", "podCIDRs: [10.2.0.0/16, 10.88.0.0/16]\n  namespaces: [demo]")
	if w := declare(t, a, wider); len(w) > 0 {
		t.Fatal(w)
	}
	if g := peerOf(t, a, b).GetGrant(); len(g.GetPodCidrs()) != 2 || len(g.GetNamespaces()) != 1 {
		t.Errorf("a changed file changed nothing: %v", g)
	}
	// Another peer, by token, is not the file's.
	c := newCluster(t, 3)
	joinPeers(t, a, c)
	if w := declare(t, a, wider+"---\n"+declaration(c)); w[c.name] == nil || !strings.Contains(w[c.name].Error(), "joined by token") {
		t.Errorf("a peer that joined was declared: %v", w)
	}
	if w := declare(t, a, ""); len(w) > 0 {
		t.Fatal(w)
	}
	eventually(t, "what is not declared any more to leave", func() bool { return a.peer(b.name) == nil && len(a.keys(b)) == 0 })
	if a.peer(c.name) == nil {
		t.Error("the one that joined left with it")
	}
}

// An edit of a peer's ranges brings back neither the CA that it retired nor what
// an operator set otherwise.
func TestEditOfADeclarationKeepsTheRest(t *testing.T) {
	a, b := newCluster(t, 1), newCluster(t, 2)
	file := declaration(b)
	for at, text := range map[*testCluster]string{a: file, b: declaration(a)} {
		if w := declare(t, at, text); len(w) > 0 {
			t.Fatal(w)
		}
	}
	connected(t, a, b)
	old := b.etcd.CA
	next, err := pki.NewCA(b.name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b.creds.set(nil, old.Certificate(), next.Certificate())
	eventually(t, "both believed", func() bool { return len(peerOf(t, a, b).GetTrustBundle()) == 2 })
	b.creds.set(apiServerOf(t, next), next.Certificate())
	eventually(t, "the old one retired", func() bool { return len(peerOf(t, a, b).GetTrustBundle()) == 1 })
	stale, expire := 7*time.Minute, time.Hour
	if err := a.m.SetAges(t.Context(), b.name, peering.Ages{Stale: &stale, Expire: &expire}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.m.ChangeGrant(t.Context(), b.name, peering.GrantChange{MaxServices: new(uint64(42))}); err != nil {
		t.Fatal(err)
	}

	wider := declaration(b, "podCIDRs: [10.2.0.0/16]", "podCIDRs: [10.2.0.0/16, 10.88.0.0/16]")
	if w := declare(t, a, wider); len(w) > 0 {
		t.Fatal(w)
	}
	p := peerOf(t, a, b)
	if g := p.GetGrant(); len(g.GetPodCidrs()) != 2 || g.GetMaxServices() != 42 {
		t.Errorf("granted is %v, want both ranges of pods and 42 services", g)
	}
	if p.GetStaleAfter() != int64(stale) || p.GetExpireAfter() != int64(expire) {
		t.Errorf("ages are %d and %d, want %d and %d", p.GetStaleAfter(), p.GetExpireAfter(), stale, expire)
	}
	b.restart()
	connected(t, a, b)
	b.creds.set(apiServerOf(t, old), next.Certificate())
	b.restart()
	eventually(t, "the old certificate refused", func() bool { return a.status(b).GetState() == stateLost })

	// The file of before goes on being applied; one that names the old CA anew is not.
	ca := func(c *pki.CA) string {
		return strings.ReplaceAll(strings.TrimSpace(string(pki.EncodeCertificate(c.Certificate()))), "\n", "\n    ")
	}
	if w := declare(t, a, strings.ReplaceAll(wider, ca(old), ca(next))); len(w) > 0 {
		t.Fatal(w)
	}
	if w := declare(t, a, wider); w[b.name] == nil || !strings.Contains(w[b.name].Error(), "replaced it by another one") {
		t.Errorf("a declaration with the retired CA: %v", w)
	}
}

func TestDeclarationsThatAreRefused(t *testing.T) {
	a, b := newCluster(t, 1), newCluster(t, 2)
	for want, text := range map[string]string{
		"did you mean":  declaration(b, "10.2.0.0/16", "10.2.0.1/16"),
		"default route": declaration(b, "10.2.0.0/16", "0.0.0.0/0"),
		"spec.endpoint": declaration(b, "endpoints", "endpoint"),
		"spec.id":       declaration(b, "  id: 2\n", ""),
		"spec.ca":       declaration(b, "-----BEGIN CERTIFICATE-----", "nonsense"),
		"is not a peer": declaration(b, "kind: Peer", "kind: Service"),
		"given twice":   declaration(b) + "---\n" + declaration(b),
		"cluster name":  declaration(b, b.name, "No_Name"),
		"both required": declaration(b, "  nodeCIDRs: [192.168.2.0/24]\n", ""),
	} {
		if _, err := peering.ParseDeclarations([]byte(text)); err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), "are both", "both"), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	for want, text := range map[string]string{
		"overlaps our own":        declaration(b, "10.2.0.0/16", "10.1.3.0/24"),
		"cluster id 1 is our own": declaration(b, "id: 2", "id: 1"),
		"our own name":            declaration(b, b.name, a.name),
	} {
		w := declare(t, a, text)
		if len(w) != 1 {
			t.Errorf("%s: %v", want, w)
		}
		for _, err := range w {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %s", err, want)
			}
		}
	}
	if ps, _, err := a.m.Peers(t.Context()); err != nil || len(ps) != 0 {
		t.Errorf("refused declarations left %v %v", ps, err)
	}
}
