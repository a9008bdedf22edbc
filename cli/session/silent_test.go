// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/internal/testutil/played"
)

// hung is the socket of an agent that lives and never answers.
func hung(t *testing.T) string {
	t.Helper()
	socket := played.Socket(t)
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	return socket
}

// stuck is an agent that takes connections and answers nothing.
type stuck struct {
	hawserv1.UnimplementedNodeServer
}

func (stuck) Status(ctx context.Context, _ *hawserv1.StatusRequest) (*hawserv1.NodeStatusReport, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// One agent that does not answer leaves time for what is asked after it, and is
// named.
func TestASilentAgentLeavesTimeForTheRest(t *testing.T) {
	answers, sticks := played.Socket(t), played.Socket(t)
	played.Agent(t, answers, saysNode{})
	played.Agent(t, sticks, stuck{})
	s := &Session{Context: played.Context(t, "east", "/nowhere", "h1", hung(t), "h2", sticks, "n1", answers), Timeout: 4 * time.Second, Output: printer.Table, Quiet: true}
	status := func(ctx context.Context, n NodeConn) ([]string, error) {
		r, err := n.Status(ctx, &hawserv1.StatusRequest{})
		if err != nil {
			return nil, err
		}
		return []string{r.GetNode()}, nil
	}
	ctx, cancel := s.Deadline(t.Context())
	defer cancel()
	rows, err := Gather(ctx, s, status)
	if err != nil || !slices.Equal(rows, []string{"n1"}) || ctx.Err() != nil {
		t.Errorf("gathered %q: %v, afterwards %v", rows, err, ctx.Err())
	}
	one, err := AskNode(ctx, s, hawserv1.NodeClient.Status, &hawserv1.StatusRequest{})
	if err != nil || one.GetNode() != "n1" || ctx.Err() != nil {
		t.Errorf("asked one: %v, %v, afterwards %v", one, err, ctx.Err())
	}
	if len(s.warned) != 2 || !strings.Contains(s.warned[0], `node "h1": its agent does not answer`) || !strings.Contains(s.warned[1], `node "h2": its agent does not answer`) {
		t.Errorf("warned %q", s.warned)
	}
	s.Node = "h2" // that one and no other
	if _, err := AskNode(ctx, s, hawserv1.NodeClient.Status, &hawserv1.StatusRequest{}); ExitCode(err) != CouldNotAsk || !errors.Is(err, ErrSilent) || !strings.Contains(err.Error(), `node "h2": its agent does not answer`) {
		t.Errorf("asked it: %v", err)
	}
}

// Whoever interrupts, or has no time left at all, does not hear of agents.
func TestAnEndedContextIsNoSilentAgent(t *testing.T) {
	s := &Session{Context: played.Context(t, "east", "/nowhere", "h1", hung(t)), Timeout: time.Minute, Output: printer.Table}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := AskNode(ctx, s, hawserv1.NodeClient.Status, &hawserv1.StatusRequest{}); err == nil || strings.Contains(err.Error(), "does not answer") {
		t.Errorf("interrupted: %v", err)
	}
}
