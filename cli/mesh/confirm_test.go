// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"strings"
	"testing"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

func TestOnlyYesIsYes(t *testing.T) {
	for in, want := range map[string]bool{"y\n": true, "YES\n": true, " yes \n": true, "y": true, "\n": false, "": false, "n\n": false, "yess\n": false, "no yes\n": false} {
		if got := agreed(strings.NewReader(in), &bytes.Buffer{}, "west"); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}

// Who confirms sees every part of both grants.
func TestBothGrantsAreShown(t *testing.T) {
	var out bytes.Buffer
	g := func(peer, pods string) *hawserv1.PeerGrant {
		return &hawserv1.PeerGrant{Peer: peer, PodCidrs: []string{pods}, NodeCidrs: []string{"192.0.2.0/24"}, ServiceCidrs: []string{"172.20.0.0/16"},
			IdentityMin: 131072, IdentityMax: 196607, Namespaces: []string{"shop"}, MaxNodes: 5000, MaxBackends: 7, Explain: true}
	}
	if err := showBoth(&out, &hawserv1.JoinResponse{Peer: "west", Grant: g("west", "10.2.0.0/16"), Granted: g("east", "10.1.0.0/16")}); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"west may publish", "This cluster, east,", "10.2.0.0/16", "10.1.0.0/16", "192.0.2.0/24", "172.20.0.0/16", "131072-196607", "shop", "5,000 nodes", "7 backends", "what policies say of its packets"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("%q is not shown:\n%s", part, out.String())
		}
	}
	if strings.Contains(out.String(), "whether its copy is right") {
		t.Errorf("it may ask what it may not:\n%s", out.String())
	}
}
