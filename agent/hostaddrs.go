// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/hawser-mesh/hawser/datapath/netdev"
)

// hostAddrsEvery is how often the node's addresses are read although nothing said
// that they changed.
const hostAddrsEvery = 30 * time.Second

// keepHostAddrs has every address of the node known as the host's, until the
// context ends. told are those that were told already.
func (a *Agent) keepHostAddrs(ctx context.Context, told []netip.Addr) error {
	changed, err := netdev.WatchAddrs(ctx)
	if err != nil {
		a.log.Warn("the node's addresses are read on a timer only", "error", err, "every", hostAddrsEvery)
	}
	tick := time.NewTicker(hostAddrsEvery)
	defer tick.Stop()
	for {
		told = a.tellHostAddrs(told)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
		}
	}
}

// tellHostAddrs reads them once, and returns what is told now: what was before
// when they cannot be read.
func (a *Agent) tellHostAddrs(told []netip.Addr) []netip.Addr {
	addrs, err := netdev.LocalAddrs()
	if err != nil {
		a.log.Warn("read the node's addresses", "error", err)
		return told
	}
	slices.SortFunc(addrs, func(x, y netip.Addr) int { return x.Compare(y) })
	if !slices.Equal(addrs, told) {
		a.view.ips.SetHostAddrs(addrs)
		a.view.flush()
	}
	return addrs
}
