// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

func question(n uint32) *federationv1.Explain {
	return &federationv1.Explain{Egress: true, Port: n, Protocol: 6,
		Self: &federationv1.ExplainEnd{Labels: []string{"k8s:app=a"}, Address: "10.1.0.1"}, Peer: &federationv1.ExplainEnd{Labels: []string{"k8s:app=b"}}}
}

// echoing answers with what was asked.
func echoing(_ context.Context, from string, q *federationv1.Explain) *federationv1.Explanation {
	return &federationv1.Explanation{Outcome: federationv1.Explanation_OUTCOME_ANSWERED, Allowed: q.GetPort()%2 == 0,
		Reason: fmt.Sprint(from, q.GetEgress(), q.GetPort(), q.GetProtocol(), q.GetSelf().GetLabels(), q.GetSelf().GetAddress(), q.GetPeer().GetLabels())}
}

// Both sides ask over the one stream, whoever dialled it; each answer reaches the
// question that it belongs to.
func TestExplainBothWays(t *testing.T) {
	a, b := pair(t, func(c *testCluster) { c.explain = echoing })
	connected(t, a, b)
	for _, way := range [][2]*testCluster{{a, b}, {b, a}} {
		from, to := way[0], way[1]
		results := make(chan error, 8)
		for n := range uint32(8) {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), within)
				defer cancel()
				got, err := from.m.Explain(ctx, to.name, question(n))
				want := echoing(ctx, from.name, question(n))
				if err == nil && (got.GetReason() != want.GetReason() || got.GetAllowed() != want.GetAllowed()) {
					err = fmt.Errorf("got %v, want %v", got, want)
				}
				results <- err
			}()
		}
		for range 8 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
	}
}

// A peer without the grant is told so, and the policies are not looked at.
func TestExplainIsByGrant(t *testing.T) {
	looked := false
	a, b := newCluster(t, 1), newCluster(t, 2, func(c *testCluster) {
		c.explain = func(ctx context.Context, from string, q *federationv1.Explain) *federationv1.Explanation {
			looked = true
			return echoing(ctx, from, q)
		}
	})
	joinPeers(t, a, b)
	key := kvstore.NewKey(kvstore.Private, b.name, kvstore.KindPeerView, a.name)
	p := &keyspacev1.Peer{}
	if err := proto.Unmarshal(b.get(key.String()), p); err != nil || !p.GetGrant().GetExplain() {
		t.Fatalf("the grant of a join is %v (%v)", p.GetGrant(), err)
	}
	p.Grant.Explain = false
	b.put(key, p)
	b.restart()
	connected(t, a, b)
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	got, err := a.m.Explain(ctx, b.name, question(1))
	if err != nil || got.GetOutcome() != federationv1.Explanation_OUTCOME_NOT_GRANTED || got.GetReason() != "" || looked {
		t.Errorf("got %v, %v; looked at policies: %v", got, err, looked)
	}
}

// Who cannot be asked is an error, never a verdict: a stranger, a peer that is
// away, and one that does not answer.
func TestExplainWithoutAnAnswer(t *testing.T) {
	asked := make(chan struct{}, 1)
	a, b := newCluster(t, 1), newCluster(t, 2, func(c *testCluster) {
		c.explain = func(ctx context.Context, _ string, _ *federationv1.Explain) *federationv1.Explanation {
			asked <- struct{}{}
			<-ctx.Done()
			return &federationv1.Explanation{}
		}
	})
	if _, err := a.m.Explain(t.Context(), b.name, question(1)); !errors.Is(err, ErrNotConnected) {
		t.Errorf("a stranger: %v", err)
	}
	joinPeers(t, a, b)
	connected(t, a, b)
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond) // in which it is asked
	defer cancel()
	if _, err := a.m.Explain(short, b.name, question(1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	<-asked
	done := make(chan error, 1)
	go func() {
		_, err := a.m.Explain(t.Context(), b.name, question(2))
		done <- err
	}()
	b.stop()
	if err := <-done; !errors.Is(err, ErrNotConnected) && err == nil {
		t.Errorf("the stream ended: %v", err)
	}
	eventually(t, "peer is away", func() bool {
		_, err := a.m.Explain(t.Context(), b.name, question(3))
		return errors.Is(err, ErrNotConnected)
	})
}
