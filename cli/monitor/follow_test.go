// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/internal/testutil/played"
)

// tells is an agent that tells one event a stream.
type tells struct {
	hawserv1.UnimplementedNodeServer
	reason string
	told   *time.Time // when not nil, by when a caller wants the stream to end
}

func (a tells) Monitor(_ *hawserv1.MonitorRequest, stream grpc.ServerStreamingServer[hawserv1.Event]) error {
	if end, ok := stream.Context().Deadline(); ok && a.told != nil {
		*a.told = end
	}
	if err := stream.Send(&hawserv1.Event{Type: "drop", Reason: a.reason}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// heard is what a running command prints.
type heard struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (h *heard) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.b.Write(p)
}

func (h *heard) wait(t *testing.T, what string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		h.mu.Lock()
		text := h.b.String()
		h.mu.Unlock()
		if strings.Contains(text, what) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%q is not told; only: %s", what, text)
		}
	}
}

func start(t *testing.T, s *session.Session, args ...string) (*heard, chan error) {
	t.Helper()
	cmd := New(s)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	out, done := &heard{}, make(chan error, 1)
	cmd.SetOut(out)
	go func() { done <- cmd.ExecuteContext(t.Context()) }()
	return out, done
}

// An agent that restarts is heard again, while another goes on and when it is the
// only one.
func TestRestartedAgentIsHeardAgain(t *testing.T) {
	one, two := played.Socket(t), played.Socket(t)
	stop := played.Agent(t, one, tells{reason: "first"})
	played.Agent(t, two, tells{reason: "other"})
	for name, c := range map[string]string{
		"alone":  played.Context(t, "east", "/nowhere", "n1", one),
		"of two": played.Context(t, "east", "/nowhere", "n1", one, "n2", two),
	} {
		out, done := start(t, &session.Session{Context: c, Timeout: time.Minute}, "--count", "1000")
		out.wait(t, "first")
		stop()
		stop = played.Agent(t, one, tells{reason: "again in " + name})
		out.wait(t, "again in "+name)
		stop()
		stop = played.Agent(t, one, tells{reason: "first"})
		select {
		case err := <-done:
			t.Errorf("%s: it ended: %v", name, err)
		default:
		}
	}
}

// When nobody answers any more, or ever, the exit code says so.
func TestNobodyAnswers(t *testing.T) {
	socket := played.Socket(t)
	stop := played.Agent(t, socket, tells{reason: "first"})
	out, done := start(t, &session.Session{Context: played.Context(t, "east", "/nowhere", "n1", socket), Timeout: 200 * time.Millisecond})
	out.wait(t, "first")
	stop()
	if err := <-done; session.ExitCode(err) != session.CouldNotAsk || !strings.Contains(err.Error(), "node n1: ") {
		t.Errorf("the agent is gone: %v", err)
	}

	silent := played.Socket(t)
	played.Agent(t, silent, hawserv1.UnimplementedNodeServer{}) // it refuses each stream
	_, done = start(t, &session.Session{Context: played.Context(t, "east", "/nowhere", "n1", silent), Timeout: time.Minute}, "--for", "200ms")
	if err := <-done; session.ExitCode(err) != session.CouldNotAsk {
		t.Errorf("the agent never answered: %v", err)
	}
}

// What ends because its time is over has done what was asked.
func TestTimeIsOver(t *testing.T) {
	socket, deadline := played.Socket(t), time.Time{}
	played.Agent(t, socket, tells{reason: "first", told: &deadline})
	out, done := start(t, &session.Session{Context: played.Context(t, "east", "/nowhere", "n1", socket), Timeout: time.Minute}, "--for", "300ms")
	if err := <-done; err != nil {
		t.Error(err)
	}
	out.wait(t, "first")
	// An agent that is told would end its stream first, as if it were stopped.
	if !deadline.IsZero() {
		t.Errorf("the agent was told to end at %s", deadline)
	}
}
