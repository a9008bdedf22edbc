// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	if _, err := s.Nodes(); ExitCode(err) != WrongUse || !strings.Contains(err.Error(), `no node "n9"`) {
		t.Errorf("unknown node: %v", err)
	}
	s.Cluster = "north"
	if _, err := s.Target(); ExitCode(err) != WrongUse {
		t.Errorf("unknown cluster: %v", err)
	}
}
