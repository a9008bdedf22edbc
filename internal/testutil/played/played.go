// SPDX-License-Identifier: Apache-2.0

// Package played serves the APIs of agents and API servers on unix sockets, with
// what a test has them say, and writes contexts that name them.
package played

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

// Socket is the path of a socket on which nothing answers yet.
func Socket(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "played") // short: a socket's path is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// APIServer answers on a socket until stop, or the test's end.
func APIServer(t testing.TB, socket string, m hawserv1.MeshServer) (stop func()) {
	t.Helper()
	return serve(t, socket, func(s *grpc.Server) { hawserv1.RegisterMeshServer(s, m) })
}

// Agent answers on a socket until stop, or the test's end.
func Agent(t testing.TB, socket string, n hawserv1.NodeServer) (stop func()) {
	t.Helper()
	return serve(t, socket, func(s *grpc.Server) { hawserv1.RegisterNodeServer(s, n) })
}

func serve(t testing.TB, socket string, register func(*grpc.Server)) (stop func()) {
	t.Helper()
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	register(s)
	go func() { _ = s.Serve(lis) }()
	t.Cleanup(s.Stop)
	return s.Stop
}

// Context writes the file of a context of one cluster: the first two are its name
// and its API server's socket, the others name and socket of each node. Names may
// be empty, as in the context of a host.
func Context(t testing.TB, cluster, socket string, nodes ...string) string {
	t.Helper()
	var list []string
	for i := 0; i+1 < len(nodes); i += 2 {
		list = append(list, fmt.Sprintf("{name: %q, socket: %q}", nodes[i], nodes[i+1]))
	}
	file := filepath.Join(t.TempDir(), "context.yaml")
	text := fmt.Sprintf("name: played\nclusters: [{name: %q, socket: %q, nodes: [%s]}]\n", cluster, socket, strings.Join(list, ", "))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
