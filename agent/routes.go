// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/internal/table"
)

const routeRetry = time.Second

// keepRoutes makes the host's routes to pods equal to a table: each prefix goes
// through the host device. Routes that an earlier process left are removed only
// once complete is closed.
func keepRoutes(ctx context.Context, log *slog.Logger, want *table.Table[netip.Prefix, struct{}], src netip.Addr, mtu int, complete <-chan struct{}) error {
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
		for p := range dirty {
			if err := keepRoute(want, p, src, mtu); err != nil {
				log.Error("set route", "prefix", p, "error", err)
				changes.Requeue(p)
				retry.Reset(routeRetry)
			}
		}
	}
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
