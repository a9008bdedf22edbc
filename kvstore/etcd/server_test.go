// SPDX-License-Identifier: Apache-2.0

package etcd_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

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
	etcdtest.Eventually(t, 10*time.Second, "client is back", func() bool {
		kv, _, err := c.Get(t.Context(), key)
		return err == nil && kv != nil && string(kv.Value) == "v"
	})
	_, err := e.Agent(t, "n1").Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(kvstore.Prefix(kvstore.Private, e.Cluster)+"x", nil)}, nil)
	if !errors.Is(err, kvstore.ErrDenied) {
		t.Errorf("access control is off after a restart: %v", err)
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
