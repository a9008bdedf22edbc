// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/internal/table"
)

const routeRetry = time.Second

// keepRoutes makes the host's routes to pods equal to a table: each prefix goes
// through the host device. Routes that an earlier process left are removed only
// once complete is closed. A prefix that holds an address of the host itself, or
// one that it must reach outside of the mesh, gets none.
func (a *Agent) keepRoutes(ctx context.Context) error {
	log, want, src, mtu, complete := a.log, a.view.podRoutes, a.cfg.NodeAddress, a.endpoints.podMTU(), (<-chan struct{})(a.complete)
	changes := want.Subscribe()
	defer changes.Close()
	retry := time.NewTimer(0)
	if !retry.Stop() {
		<-retry.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changes.C():
		case <-retry.C:
		case <-complete:
			complete = nil
			if err := pruneRoutes(want); err != nil {
				log.Error("remove stale routes", "error", err)
			}
		}
		dirty, _ := changes.Take()
		own, err := netdev.HostAddrs()
		if err != nil {
			log.Error("read what the host needs", "error", err)
		}
		for p := range dirty {
			err := a.spares(p, own)
			if err == nil {
				err = keepRoute(want, p, src, mtu)
			}
			if a.routeless.note(p, err) {
				log.Error("set route", "prefix", p, "error", err)
			}
			if err != nil {
				changes.Requeue(p)
				retry.Reset(routeRetry)
			}
		}
	}
}

// spares refuses a prefix that holds one of the host's own addresses, or that of
// an etcd or of a node: these are reached outside of the tunnel, and a host that
// lost them could not be told to remove the route.
func (a *Agent) spares(p netip.Prefix, own []netip.Addr) error {
	if _, wanted := a.view.podRoutes.Get(p); !wanted {
		return nil
	}
	for _, at := range own {
		if p.Contains(at) {
			return fmt.Errorf("set route to %s: %w: the host needs %s", p, netdev.ErrForeignRoute, at)
		}
	}
	for _, e := range a.cfg.EtcdEndpoints {
		if at, err := netip.ParseAddrPort(e); err == nil && p.Contains(at.Addr()) {
			return fmt.Errorf("set route to %s: %w: %s is this cluster's etcd", p, netdev.ErrForeignRoute, at)
		}
	}
	for at, n := range a.tables.Nodes.All() {
		if p.Contains(at) {
			return fmt.Errorf("set route to %s: %w: %s is node %s/%s", p, netdev.ErrForeignRoute, at, n.Cluster, n.Name)
		}
	}
	return nil
}

// routeless are the prefixes that have no route, and why.
type routeless struct {
	mu  sync.Mutex
	why map[netip.Prefix]string
}

// note keeps why a prefix has no route, nil when it has, and reports whether
// that is news to tell.
func (r *routeless) note(p netip.Prefix, err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		delete(r.why, p)
		return false
	}
	if r.why == nil {
		r.why = map[netip.Prefix]string{}
	}
	news := r.why[p] != err.Error()
	r.why[p] = err.Error()
	return news
}

func (r *routeless) problems() (out []*hawserv1.Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range slices.SortedFunc(maps.Keys(r.why), netip.Prefix.Compare) {
		out = append(out, &hawserv1.Problem{
			Object: "route " + p.String(), Problem: "this host does not reach it: " + r.why[p],
			Fix: "see who announces it: hawser vtep list",
		})
	}
	return out
}

func keepRoute(want *table.Table[netip.Prefix, struct{}], p netip.Prefix, src netip.Addr, mtu int) error {
	if _, ok := want.Get(p); !ok {
		return netdev.DeleteRoute(p)
	}
	if p.Addr().Is4() != src.Is4() {
		return nil // no address of that family to send from
	}
	return netdev.EnsureRoute(p, src, mtu)
}

func pruneRoutes(want *table.Table[netip.Prefix, struct{}]) error {
	present, err := netdev.Routes()
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range present {
		if _, ok := want.Get(p); !ok {
			errs = append(errs, netdev.DeleteRoute(p))
		}
	}
	return errors.Join(errs...)
}
