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

const (
	routeRetry = time.Second
	// refusedRetry is for prefixes that the host needs: that rarely changes.
	refusedRetry = 30 * time.Second
)

// keepRoutes makes the host's routes to pods equal to a table: each prefix goes
// through the host device. Routes that an earlier process left are removed only
// once complete is closed. A prefix that holds an address of the host itself, or
// one that it must reach outside of the mesh, gets none.
func (a *Agent) keepRoutes(ctx context.Context) error {
	changes, nodes, outside := a.view.podRoutes.Subscribe(), a.tables.Nodes.Subscribe(), a.outside.addrs.Subscribe()
	defer changes.Close()
	defer nodes.Close()
	defer outside.Close()
	again := func(met map[netip.Addr]struct{}) {
		for p := range a.view.podRoutes.All() {
			if holdsAny(p, met) {
				changes.Requeue(p)
			}
		}
	}
	retry := time.NewTimer(0)
	if !retry.Stop() {
		<-retry.C
	}
	complete := (<-chan struct{})(a.complete)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changes.C():
		case <-nodes.C():
			met, _ := nodes.Take()
			again(met)
		case <-outside.C():
			met, _ := outside.Take()
			again(met)
		case <-a.host.wake:
			a.again(changes)
		case <-retry.C:
		case <-complete:
			complete = nil
			if err := pruneRoutes(a.view.podRoutes); err != nil {
				a.log.Error("remove stale routes", "error", err)
			}
		}
		if wait := a.routesOf(changes); wait > 0 {
			retry.Reset(wait)
		}
	}
}

// again has the routes set that the host has lost with its device.
func (a *Agent) again(changes *table.Changes[netip.Prefix]) {
	present, err := netdev.Routes()
	if err != nil {
		a.log.Error("look for routes", "error", err) // all are set again
	}
	have := map[netip.Prefix]bool{}
	for _, p := range present {
		have[p] = true
	}
	for p := range a.view.podRoutes.All() {
		if !have[p] {
			changes.Requeue(p)
		}
	}
}

func holdsAny(p netip.Prefix, addrs map[netip.Addr]struct{}) bool {
	for at := range addrs {
		if p.Contains(at) {
			return true
		}
	}
	return false
}

// routesOf brings what changed into the kernel, and returns after what time what
// failed is to be tried again, 0 when nothing failed.
func (a *Agent) routesOf(changes *table.Changes[netip.Prefix]) (again time.Duration) {
	dirty, _ := changes.Take()
	if len(dirty) == 0 {
		return 0
	}
	own, err := netdev.HostAddrs()
	if err != nil {
		a.log.Error("read what the host needs", "error", err)
	}
	for p := range dirty {
		err := a.keepRoute(p, own)
		if a.routeless.note(p, err) {
			a.log.Error("set route", "prefix", p, "error", err)
		}
		if err == nil {
			continue
		}
		changes.Requeue(p)
		if errors.Is(err, netdev.ErrForeignRoute) && again != routeRetry {
			again = refusedRetry
		} else {
			again = routeRetry
		}
	}
	return again
}

// spares refuses a prefix that holds one of the host's own addresses, or that of
// the etcd, the API server or a node: these are reached outside of the tunnel, and a host that
// lost them could not be told to remove the route.
func (a *Agent) spares(p netip.Prefix, own []netip.Addr) error {
	for _, at := range own {
		if p.Contains(at) {
			return fmt.Errorf("set route to %s: %w: the host needs %s", p, netdev.ErrForeignRoute, at)
		}
	}
	for at, what := range a.outside.addrs.All() {
		if p.Contains(at) {
			return fmt.Errorf("set route to %s: %w: %s is this cluster's %s", p, netdev.ErrForeignRoute, at, what)
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

// keepRoute sets or removes the route to a prefix; one that became the host's to
// keep is taken back.
func (a *Agent) keepRoute(p netip.Prefix, own []netip.Addr) error {
	if _, wanted := a.view.podRoutes.Get(p); !wanted {
		return netdev.DeleteRoute(p)
	}
	if err := a.spares(p, own); err != nil {
		return errors.Join(err, netdev.DeleteRoute(p))
	}
	src := a.cfg.sourceOf(p)
	if !src.IsValid() {
		return nil // no address of that family to send from
	}
	return netdev.EnsureRoute(p, src, a.endpoints.podMTU())
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
