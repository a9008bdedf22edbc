// SPDX-License-Identifier: Apache-2.0

// Package etcdtest gives tests a real embedded etcd on loopback with its own CA
// and access control, and clients for each role.
//
// Start with Start, or with Each for a suite on every kind of etcd. Tests of one package may share an Etcd made with New (in
// TestMain or a sync.Once); each then takes its own key names.
package etcdtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// Etcd is one embedded etcd and what is needed to reach it.
type Etcd struct {
	// Cluster is the random name of the cluster it serves.
	Cluster string
	CA      *pki.CA
	Server  *etcd.Server
	// Config restarts it: after Server.Close, Server = etcd.Start(Config)
	// with the same data and port.
	Config etcd.ServerConfig
	// Kind is what it is; Servers and Configs are its members (none if it is
	// a process of its own). Server and Config are the first.
	Kind    Kind
	Servers []*etcd.Server
	Configs []etcd.ServerConfig

	dir     string
	process *process
}

// kindVar is the environment variable that makes Start start another kind of etcd
// (`make test-etcd`), so that whole suites run on it.
const kindVar = "HAWSER_TEST_ETCD"

// Start runs an etcd until the test ends: an embedded one of one member, unless
// the environment asks for another kind.
//
// The first etcd of a test makes it run beside others (testing.T.Parallel):
// starting and stopping is mostly waiting. So begin with it.
func Start(tb testing.TB) *Etcd {
	tb.Helper()
	if k := Kind(os.Getenv(kindVar)); k == Members || k == External {
		return StartKind(tb, k)
	}
	return startEmbedded(tb)
}

// beside lets a test run beside others, once.
func beside(tb testing.TB) {
	t, ok := tb.(*testing.T)
	if !ok {
		return
	}
	if _, done := parallel.LoadOrStore(t, true); done {
		return
	}
	t.Cleanup(func() { parallel.Delete(t) })
	t.Parallel()
}

var parallel sync.Map //nolint:gochecknoglobals // the tests of this process that run beside others

func startEmbedded(tb testing.TB) *Etcd {
	tb.Helper()
	beside(tb)
	e, err := New(tb.Context(), scratch(tb), slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatalf("start etcd: %v", err)
	}
	e.Servers, e.Configs = []*etcd.Server{e.Server}, []etcd.ServerConfig{e.Config}
	tb.Cleanup(func() { e.Server.Close() })
	return e
}

// New runs an etcd with all its files below dir. The caller closes Server.
func New(ctx context.Context, dir string, log *slog.Logger) (*Etcd, error) {
	cluster := RandomCluster()
	now := time.Now()
	ca, err := pki.NewCA(cluster, now)
	if err != nil {
		return nil, err
	}
	e := &Etcd{Cluster: cluster, CA: ca, Kind: Embedded, dir: dir}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	server, err := e.Files(pki.Request{Role: pki.RoleAPIServer, IPs: []netip.Addr{loopback}})
	if err != nil {
		return nil, err
	}
	root, err := e.Files(pki.Request{Role: pki.RoleRoot})
	if err != nil {
		return nil, err
	}
	e.Config = etcd.ServerConfig{
		Cluster: cluster, DataDir: filepath.Join(dir, "etcd"),
		Listen: netip.AddrPortFrom(loopback, 0),
		TLS:    server, Root: root, UnsafeNoFsync: true, Log: log,
	}
	if e.Server, err = etcd.Start(ctx, e.Config); err != nil {
		return nil, err
	}
	// A restart must come back where clients look for it.
	if e.Config.Listen, err = netip.ParseAddrPort(e.Server.Endpoint()); err != nil {
		return nil, fmt.Errorf("endpoint of etcd: %w", err)
	}
	return e, nil
}

// Files issues a certificate and writes it below the Etcd's directory.
func (e *Etcd) Files(r pki.Request) (pki.Files, error) {
	leaf, err := e.CA.Issue(r, time.Now())
	if err != nil {
		return pki.Files{}, err
	}
	name := string(r.Role)
	if r.Name != "" {
		name += "-" + r.Name
	}
	if len(r.IPs) > 0 {
		name += "-server" // the server's own is not the same as a client's
	}
	return leaf.Save(filepath.Join(e.dir, "pki"), name)
}

// Client connects to all members as a role until the test ends; name is the node
// of an agent or the user of an admin.
func (e *Etcd) Client(tb testing.TB, role pki.Role, name string) *etcd.Client {
	tb.Helper()
	return e.ClientAt(tb, strings.Join(e.Endpoints(), ","), role, name)
}

// ClientAt is Client through other addresses, such as a proxy's, with commas
// between them.
func (e *Etcd) ClientAt(tb testing.TB, endpoints string, role pki.Role, name string) *etcd.Client {
	tb.Helper()
	files, err := e.Files(pki.Request{Role: role, Name: name})
	if err != nil {
		tb.Fatalf("certificate of %s %s: %v", role, name, err)
	}
	server := &pki.ID{Cluster: e.Cluster, Role: pki.RoleAPIServer}
	if e.process != nil {
		server = nil // it is known by its address and its CA
	}
	tls, err := files.ClientTLS(server)
	if err != nil {
		tb.Fatalf("TLS of %s %s: %v", role, name, err)
	}
	c, err := etcd.NewClient(etcd.ClientConfig{Endpoints: strings.Split(endpoints, ","), TLS: tls})
	if err != nil {
		tb.Fatalf("connect as %s %s: %v", role, name, err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// Agent connects as a node's agent until the test ends.
func (e *Etcd) Agent(tb testing.TB, node string) *etcd.Client {
	tb.Helper()
	return e.Client(tb, pki.RoleAgent, node)
}

// APIServer connects as the API server until the test ends.
func (e *Etcd) APIServer(tb testing.TB) *etcd.Client {
	tb.Helper()
	return e.Client(tb, pki.RoleAPIServer, "")
}

// Eventually polls until ok holds, or fails the test after the deadline.
func Eventually(tb testing.TB, within time.Duration, what string, ok func() bool) {
	tb.Helper()
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			tb.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// RandomCluster is a cluster name that no other test uses.
func RandomCluster() string {
	b := make([]byte, 4)
	_, _ = rand.Read(b) // never fails
	return "c" + hex.EncodeToString(b)
}

// scratch is a directory in memory where the system has one, so that tests do
// not wait for a disk.
func scratch(tb testing.TB) string {
	tb.Helper()
	if dir, err := os.MkdirTemp("/dev/shm", "hawser-etcdtest-"); err == nil {
		tb.Cleanup(func() { _ = os.RemoveAll(dir) })
		return dir
	}
	return tb.TempDir()
}
