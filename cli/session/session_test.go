// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, Done},
		{Answer("no"), No},
		{Usage("wrong"), WrongUse},
		{fmt.Errorf("wrapped: %w", Usage("wrong")), WrongUse},
		{status.Error(codes.Unavailable, "gone"), CouldNotAsk},
		{status.Error(codes.InvalidArgument, "bad"), WrongUse},
		{status.Error(codes.NotFound, "none"), No},
		{errors.New("anything"), No},
	} {
		if got := ExitCode(c.err); got != c.want {
			t.Errorf("%v ends with %d, want %d", c.err, got, c.want)
		}
	}
}

func TestMessageHasNoWrapping(t *testing.T) {
	if got := Message(status.Error(codes.NotFound, "no policy demo/x")); got != "no policy demo/x" {
		t.Error(got)
	}
	inner := status.Error(codes.NotFound, "no such endpoint")
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("node %q: %w", "n1", inner), `node "n1": no such endpoint`},
		{&Error{Code: No, Err: errors.Join(fmt.Errorf("a: %w", inner), inner)}, "a: no such endpoint\nno such endpoint"},
		{fmt.Errorf("API server: %w", Answer("x: %v", inner)), "API server: x: no such endpoint"},
		{status.Error(codes.Unavailable, inner.Error()), "no such endpoint"},
		{status.Error(codes.Canceled, ""), "Canceled"},
		{status.Error(codes.Unavailable, `connection error: desc = "transport: Error while dialing: dial unix /x: refused"`), "Error while dialing: dial unix /x: refused"},
	} {
		if got := Message(c.err); got != c.want {
			t.Errorf("%v is shown as %q, want %q", c.err, got, c.want)
		}
	}
	if got := Message(Answer("2 of 3 differ")); got != "2 of 3 differ" {
		t.Error(got)
	}
}

func TestMissingSocketIsExplained(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("name: x\nclusters: [{name: east, socket: /nowhere.sock, nodes: [{name: n1, socket: /nowhere2.sock}]}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &Session{Context: file}
	_, _, err := s.Mesh()
	if ExitCode(err) != CouldNotAsk || !strings.Contains(err.Error(), "/nowhere.sock") {
		t.Errorf("API server: %v", err)
	}
	if _, err := s.Nodes(); ExitCode(err) != CouldNotAsk || !strings.Contains(err.Error(), `node "n1"`) {
		t.Errorf("nodes: %v", err)
	}
	s.Node = "n9"
	if _, err := s.Nodes(); ExitCode(err) != WrongUse || !strings.Contains(err.Error(), `no node "n9", there are: n1`) {
		t.Errorf("unknown node: %v", err)
	}
	s.Cluster = "north"
	if _, err := s.Target(); ExitCode(err) != WrongUse {
		t.Errorf("unknown cluster: %v", err)
	}
}

// TestGatherEndsWithTheAnswersCode asks agents that all answer no.
func TestGatherEndsWithTheAnswersCode(t *testing.T) {
	dir := t.TempDir()
	var nodes []string
	for _, name := range []string{"n1", "n2"} {
		socket := filepath.Join(dir, name)
		lis, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { lis.Close() })
		nodes = append(nodes, fmt.Sprintf("{name: %s, socket: %s}", name, socket))
	}
	file := filepath.Join(dir, "c.yaml")
	text := fmt.Sprintf("name: x\nclusters: [{name: east, socket: /nowhere.sock, nodes: [%s]}]\n", strings.Join(nodes, ", "))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &Session{Context: file, Timeout: time.Second}
	for _, c := range []struct {
		first, second codes.Code
		want          int
	}{
		{codes.NotFound, codes.NotFound, No},
		{codes.NotFound, codes.Unavailable, CouldNotAsk},
		{codes.InvalidArgument, codes.InvalidArgument, WrongUse},
	} {
		_, err := Gather(t.Context(), s, func(_ context.Context, n NodeConn) ([]int, error) {
			if n.Name == "n1" {
				return nil, status.Error(c.first, "no")
			}
			return nil, status.Error(c.second, "no")
		})
		if got := ExitCode(err); got != c.want {
			t.Errorf("%s and %s end with %d, want %d", c.first, c.second, got, c.want)
		}
	}
}
