// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"strings"
	"testing"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
)

// What is said of a peer without a stream is true of that peer.
func TestPeersWithoutAStream(t *testing.T) {
	for name, c := range map[string]struct {
		p    *hawserv1.PeerStatus
		says []string
		not  string
	}{
		"lost": {&hawserv1.PeerStatus{State: "lost", Data: "stale", Keys: 7, Endpoints: []string{"192.0.2.9:4243"}, PositionRevision: 42, LastError: "dial a\ndial b"},
			[]string{"its data stays as it was at revision 42", "last error: dial a; dial b", "next: see that its API server runs"}, "never heard"},
		"declared, never reached": {&hawserv1.PeerStatus{State: "connecting", Declared: true, Endpoints: []string{"192.0.2.9:4243"}, LastError: "connection refused"},
			[]string{"it was never heard, and nothing of it is here", "connection refused", "runs at 192.0.2.9:4243", "--peers-file declares this cluster"}, "as it was"},
		"its view is gone, its keys are not": {&hawserv1.PeerStatus{State: "connecting", Keys: 7}, []string{"its 7 keys stay as they are"}, "nothing of it"},
		"leaving":                            {&hawserv1.PeerStatus{State: "leaving", Keys: 7}, []string{"is being removed"}, "next:"},
		"connected":                          {&hawserv1.PeerStatus{State: "connected", Data: "fresh", Keys: 7}, []string{"west"}, "west:"},
	} {
		c.p.Name = "west"
		var out bytes.Buffer
		if err := show(&out, printer.Table, &hawserv1.MeshStatusResponse{Peers: []*hawserv1.PeerStatus{c.p}}); err != nil {
			t.Fatal(err)
		}
		for _, want := range c.says {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: not told: %q in\n%s", name, want, out.String())
			}
		}
		if strings.Contains(out.String(), c.not) {
			t.Errorf("%s: told: %q in\n%s", name, c.not, out.String())
		}
	}
}
