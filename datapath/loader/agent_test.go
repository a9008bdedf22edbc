// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/datapath/reconcile"
)

// agent is what an agent's datapath is made of.
type agent struct {
	d      *loader.Datapath
	r      *reconcile.Reconciler
	tables *datapath.Tables
	cancel context.CancelFunc // nil: it does not run
	done   chan error
}

func startAgent(t *testing.T, nd *node, tables *datapath.Tables, devices ...string) *agent {
	t.Helper()
	return startAgentWith(t, "", nd, tables, devices...)
}

func startAgentWith(t *testing.T, attach string, nd *node, tables *datapath.Tables, devices ...string) *agent {
	t.Helper()
	return startAgentOf(t, loader.Config{Attach: attach}, nd, tables, devices...)
}

// startAgentOf fills in where the node is.
func startAgentOf(t *testing.T, cfg loader.Config, nd *node, tables *datapath.Tables, devices ...string) *agent {
	t.Helper()
	cfg.PinPath, cfg.BPFFS, cfg.UnderlayDevice, cfg.NodeAddr, cfg.NodeAddr6 = nd.pin, nd.fs, "eth0", nd.addr, nd.addr6
	cfg.MapSizes, cfg.TunnelDevice = loader.SmallMaps(), nd.tunnel
	a := &agent{tables: tables, done: make(chan error, 1)}
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	inNS(t, nd.ns, func() (err error) {
		if nd.tunnel != "" {
			if _, err := netdev.EnsureTunnelDevice(t.Context(), netdev.TunnelConfig{Port: 8472}); err != nil {
				return err
			}
		}
		a.d, err = loader.Open(cfg, log)
		if err != nil {
			return err
		}
		errs := []error{a.d.AttachTunnel(), a.d.AttachUnderlay(), a.d.AttachHost()}
		for _, dev := range devices {
			errs = append(errs, a.d.AttachEndpoint(dev))
		}
		return errors.Join(errs...)
	})
	var err error
	if a.r, err = reconcile.New(a.d, tables, log); err != nil {
		t.Fatal(err)
	}
	a.run(t)
	return a
}

func (a *agent) run(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	a.cancel = cancel
	go func() { a.done <- a.r.Run(ctx) }()
}

// wait blocks until the kernel has all tables.
func (a *agent) wait(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, s := range a.r.Status() {
		if err := a.r.Wait(ctx, s.Table, s.Revision); err != nil {
			t.Fatalf("%v; status %+v", err, a.r.Status())
		}
	}
}

func (a *agent) stop(t *testing.T) {
	t.Helper()
	if a.cancel == nil {
		return
	}
	a.cancel()
	a.cancel = nil
	if err := <-a.done; err != nil {
		t.Error(err)
	}
	if err := a.d.Close(); err != nil {
		t.Error(err)
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}
