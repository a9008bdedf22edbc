// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

const escape = "\x1b[2J\u009b1m\u202e"

// TestTextsOfAPeerSpoilNoStatus: whatever a peer calls its keys, and says when it
// gives up, the status of all peers can be sent, and shown.
func TestTextsOfAPeerSpoilNoStatus(t *testing.T) {
	hub := newCluster(t, 1, small(8))
	p := hub.admit(2, 8)
	p.connect()
	p.first()
	var list []*federationv1.Change
	for pad := range 2 { // wherever it is cut, it is inside of one of them
		list = append(list, &federationv1.Change{Key: "nodes/" + strings.Repeat("x", pad) + strings.Repeat("é", 400), Value: []byte("x")})
	}
	list = append(list, &federationv1.Change{Key: "novelties/a/" + escape + "/b//c", Value: []byte("x")},
		p.record(kvstore.NewKey(kvstore.State, p.name, kvstore.KindNode, escape), describeSmall(p.name, 2, 8)))
	p.batch(20, false, list...)
	eventually(t, "refused", func() bool { return len(p.status().GetLastRefused()) >= 3 })
	fit := func() {
		t.Helper()
		s := p.status()
		if _, err := proto.Marshal(s); err != nil {
			t.Errorf("the status cannot be sent: %v", err)
		}
		for _, text := range append(s.GetLastRefused(), s.GetLastError(), s.GetLastSync()) {
			if !utf8.ValidString(text) || strings.ContainsAny(text, escape[:1]+"\u009b\u202e\n") || len(text) > 2*maxKeyBytes {
				t.Errorf("shown is %q", text)
			}
		}
	}
	fit()
	p.send(&federationv1.Frame{Body: &federationv1.Frame_Goodbye{Goodbye: &federationv1.Goodbye{Reason: escape, Detail: strings.Repeat("é", 400)}}})
	eventually(t, "given up", func() bool { return strings.Contains(p.status().GetLastError(), "gives the stream up") })
	fit()
}

func TestErrorsAreToldOnOneLine(t *testing.T) {
	st := newPeerState(time.Now)
	st.failed(errors.Join(errors.New("dial a: "+escape+"\xff"), errors.New(strings.Repeat("é", maxReason))))
	got := st.lastError
	if !strings.HasPrefix(got, "dial a:  [2J 1m ?; éé") || !utf8.ValidString(got) || len(got) > maxReason {
		t.Errorf("told is %q", got)
	}
	st.down(nil, errors.New(escape))
	if strings.Contains(st.lastError, escape[:1]) {
		t.Errorf("told is %q", st.lastError)
	}
}

func TestEndpointsThatNobodyCanDial(t *testing.T) {
	for ep, ok := range map[string]bool{
		"192.0.2.1:4243": true, "[fd00::1]:4243": true, "api.example:4243": true, "[fe80::1%eth0]:4243": true,
		escape + ":4243": false, "a b:4243": false, "é:4243": false, "a:b": false, ":4243": false,
	} {
		if err := peering.CheckEndpoints([]string{ep}); (err == nil) != ok {
			t.Errorf("%q: %v", ep, err)
		} else if err != nil && strings.Contains(err.Error(), escape[:1]) {
			t.Errorf("told is %q", err)
		}
	}
}
