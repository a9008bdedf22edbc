// SPDX-License-Identifier: Apache-2.0

package etcd_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

const shortTry = 500 * time.Millisecond

func contextFor(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(t.Context(), d)
}

func farFuture(t *testing.T) time.Time {
	t.Helper()
	return time.Now().Add(1000 * time.Hour)
}

func put(t *testing.T, c kvstore.Client, key, value string) int64 {
	t.Helper()
	res, err := c.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(key, []byte(value))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return res.Revision
}

func TestRestartKeepsDataAndAccess(t *testing.T) {
	e := etcdtest.Start(t)
	key := kvstore.Prefix(kvstore.State, e.Cluster) + "nodes/n1"
	c := e.APIServer(t)
	put(t, c, key, "v")
	e.Stop()
	e.Restart(t)
	etcdtest.Eventually(t, 30*time.Second, "client is back", func() bool {
		kv, _, err := c.Get(t.Context(), key)
		return err == nil && kv != nil && string(kv.Value) == "v"
	})
	_, err := e.Agent(t, "n1").Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(kvstore.Prefix(kvstore.Private, e.Cluster)+"x", nil)}, nil)
	if !errors.Is(err, kvstore.ErrDenied) {
		t.Errorf("access control is off after a restart: %v", err)
	}
}

// A server that stops ends open watches and lease renewals itself. etcd would wait
// for them, and be away for as long as a request may take.
func TestStoppingEndsStreams(t *testing.T) {
	e := etcdtest.Start(t)
	files, err := e.Files(pki.Request{Role: pki.RoleAPIServer})
	if err != nil {
		t.Fatal(err)
	}
	tls, err := files.ClientTLS(nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(e.Endpoints()[0], grpc.WithTransportCredentials(credentials.NewTLS(tls)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	watch, err := pb.NewWatchClient(conn).Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	renewal, err := pb.NewLeaseClient(conn).LeaseKeepAlive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key := []byte(kvstore.Prefix(kvstore.State, e.Cluster))
	if err := watch.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: key}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := renewal.Send(&pb.LeaseKeepAliveRequest{ID: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := renewal.Recv(); err != nil {
		t.Fatal(err)
	}
	e.Stop()
	_, err1 := watch.Recv()
	_, err2 := renewal.Recv()
	for _, err := range []error{err1, err2} {
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "etcd is stopping") {
			t.Errorf("the stream ended with: %v", err)
		}
	}
}

func TestPortInUseIsNamed(t *testing.T) {
	e := etcdtest.Start(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := e.Config
	cfg.DataDir = t.TempDir()
	cfg.Listen = netip.MustParseAddrPort(l.Addr().String())
	_, err = etcd.Start(t.Context(), cfg)
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("got %v, want the address %s and that it is in use", err, l.Addr())
	}
}

func TestConfigListsAllProblems(t *testing.T) {
	_, err := etcd.Start(t.Context(), etcd.ServerConfig{Cluster: "Bad"})
	if err == nil {
		t.Fatal("started without anything")
	}
	for _, want := range []string{"cluster name", "data directory", "listen address", "server certificate", "root certificate"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not mention the %s", err, want)
		}
	}
}

func TestErrorsNameOperationKeyAndCause(t *testing.T) {
	e := etcdtest.Start(t)
	p := e.Proxy(t)
	p.Cut()
	c := e.ClientAt(t, p.Endpoint(), "apiserver", "")
	ctx, cancel := contextFor(t, shortTry)
	defer cancel()
	key := kvstore.Prefix(kvstore.State, e.Cluster) + "nodes/n1"
	_, _, err := c.Get(ctx, key)
	if err == nil {
		t.Fatal("read through a cut connection")
	}
	for _, want := range []string{"get " + key, p.Endpoint()} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not mention %q", err, want)
		}
	}
	t.Log(err)
}

// TestPortHasNoHTTP: the port speaks gRPC and nothing beside it, for HTTP there
// would cost a third of its speed; what etcd tells by HTTP is on a local socket, for
// holders of a certificate.
func TestPortHasNoHTTP(t *testing.T) {
	e := etcdtest.StartKind(t, etcdtest.Embedded)
	put(t, e.APIServer(t), kvstore.Prefix(kvstore.State, e.Cluster)+"nodes/n1", "v")
	files, err := e.Files(pki.Request{Role: pki.RoleAgent, Name: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	with, err := files.ClientTLS(&pki.ID{Cluster: e.Cluster, Role: pki.RoleAPIServer})
	if err != nil {
		t.Fatal(err)
	}
	without := with.Clone()
	without.Certificates, without.GetClientCertificate = nil, nil
	version := func(network, address string, cfg *tls.Config) (string, error) {
		tr := &http.Transport{TLSClientConfig: cfg.Clone(), DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}}
		ctx, cancel := contextFor(t, 5*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://etcd/version", nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := tr.RoundTrip(req)
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		return string(b), err
	}
	if v, err := version("tcp", e.Endpoints()[0], with); err == nil {
		t.Errorf("the port answers HTTP: %q", v)
	}
	answered := 0
	for _, socket := range httpSockets(t) {
		if v, err := version("unix", socket, without); err == nil {
			t.Errorf("%s answers without a certificate: %q", socket, v)
		}
		if v, err := version("unix", socket, with); err == nil && strings.Contains(v, "etcdserver") {
			answered++
		}
	}
	if answered != 1 {
		t.Errorf("%d sockets answer this cluster's node, not 1", answered)
	}
}

// httpSockets are those of all embedded etcds of this network namespace.
func httpSockets(t *testing.T) (out []string) {
	t.Helper()
	b, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 8 && f[3] == "00010000" && strings.HasPrefix(f[7], "@hawser-etcd-") { // listening
			out = append(out, f[7])
		}
	}
	return out
}
