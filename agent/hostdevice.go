// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/datapath/netdev"
)

// hostPair is the pair between the node's own stack and the programs.
type hostPair struct {
	pair netdev.HostPair // as the programs know it, and its peer's index now
	lost lostDevice
	wake chan struct{} // routes through it may be gone
}

func (a *Agent) hostConfig() netdev.HostConfig {
	return netdev.HostConfig{MTU: a.mtu, Addr6: a.cfg.nodeAddress6(), As: a.host.pair}
}

// keepHost puts the host pair back when somebody removes or changes it, until the
// context ends.
func (a *Agent) keepHost(ctx context.Context) error {
	return keepDevices(ctx, a.log, func(changed bool) {
		a.host.lost.note(netdev.HostDevice, a.putHostBack(ctx, changed), a.log)
	}, netdev.HostDevice, netdev.HostPeer)
}

// putHostBack makes the pair as the programs know it, by its index and its addresses,
// with the programs on it, and has the routes through it set again.
func (a *Agent) putHostBack(ctx context.Context, changed bool) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the agent ends; the pair stays as it is
	}
	pair, err := netdev.EnsureHostDevice(a.hostConfig())
	if err != nil {
		return err
	}
	if pair != a.host.pair {
		a.log.Warn("somebody removed the host's device; it is put back", "device", netdev.HostDevice)
		a.host.pair, changed = pair, true
	}
	if err := a.dp.AttachHost(); err != nil {
		return err
	}
	if changed {
		select {
		case a.host.wake <- struct{}{}:
		default: // it will look
		}
	}
	return nil
}

// problems says that there is no pair.
func (h *hostPair) problems() []*hawserv1.Problem {
	return h.lost.problems(netdev.HostDevice, "the host and its pods do not reach each other", "; else restart the agent")
}
