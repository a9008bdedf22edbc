// SPDX-License-Identifier: Apache-2.0

// Package apitest runs an API server inside a test of what talks to one.
//
// Start with Run. What has an etcd alone uses etcdtest; what needs no real API
// server plays one (played).
package apitest

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/clustermesh/apiserver"
	"github.com/hawser-mesh/hawser/internal/testutil/ports"
)

// Run runs an API server of cluster east with an embedded etcd until the test ends,
// and returns once it answers on its socket. All its files are in a temporary
// directory, its ports are free ones of this host.
func Run(t testing.TB) apiserver.Config {
	t.Helper()
	dir := t.TempDir()
	cfg := apiserver.Config{
		Cluster: "east", ClusterID: 1, ClusterBits: 8, DataDir: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "api.sock"),
		ListenEtcd: ports.Free(t), ListenFederation: netip.MustParseAddrPort("127.0.0.1:0"), ListenAPI: ports.Free(t),
		TunnelPort: apiserver.DefaultTunnelPort, UnsafeNoFsync: true,
		PodCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		NodeCIDRs:    []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.101.0.0/24")},
		Replica:      apiserver.DefaultReplica, StaleAfter: apiserver.DefaultStaleAfter, ExpireAfter: apiserver.DefaultExpireAfter, IdentityGCInterval: time.Minute,
		Log: slog.New(slog.DiscardHandler),
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- apiserver.Run(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("API server: %v", err)
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(cfg.Socket); err == nil {
			return cfg
		}
		if time.Now().After(deadline) {
			t.Fatal("the API server is not ready within 30 s")
		}
	}
}
