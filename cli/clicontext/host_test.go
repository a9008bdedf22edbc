// SPDX-License-Identifier: Apache-2.0

package clicontext

import (
	"os"
	"path/filepath"
	"testing"
)

// A host runs one program or both; of one that is stopped something is left.
func TestHostIsWhatRunsThere(t *testing.T) {
	for name, c := range map[string]struct {
		there            []string
		apiServer, agent bool
	}{
		"both":                     {[]string{"api.sock", "agent.sock"}, true, true},
		"API server":               {[]string{"api.sock"}, true, false},
		"agent":                    {[]string{"agent.sock"}, false, true},
		"agent stopped":            {[]string{"api.sock", "tls.crt"}, true, true},
		"API server stopped":       {[]string{"ca.key", "agent.sock"}, true, true},
		"neither, so that both do": {nil, true, true},
	} {
		dir := t.TempDir()
		for _, f := range c.there {
			if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		at := func(f string) string { return filepath.Join(dir, f) }
		h := hostWith(at("api.sock"), at("ca.key"), at("agent.sock"), at("tls.crt")).Clusters[0]
		if (h.Socket != "") != c.apiServer || (len(h.Nodes) != 0) != c.agent {
			t.Errorf("%s: %+v", name, h)
		}
	}
}

func TestNamelessMatchesAnyName(t *testing.T) {
	c := &Context{Name: "host", Clusters: []Cluster{{Nodes: []Node{{}}}}}
	if _, err := c.Cluster("east"); err != nil || !c.Clusters[0].Nodes[0].Is("east-1") {
		t.Errorf("nameless: %v", err)
	}
	c = &Context{Name: "lab", Clusters: []Cluster{{Name: "east"}, {Name: "west", Nodes: []Node{{Name: "west-1"}}}}}
	if cl, err := c.Cluster("west"); err != nil || cl.Name != "west" || cl.Nodes[0].Is("west-2") || !cl.Nodes[0].Is("west-1") {
		t.Errorf("named: %+v, %v", cl, err)
	}
	if _, err := c.Cluster("north"); err == nil || err.Error() != `context "lab" has no cluster "north", there are: east, west` {
		t.Errorf("unknown: %v", err)
	}
}
