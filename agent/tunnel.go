// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/datapath/features"
	"github.com/hawser-mesh/hawser/datapath/netdev"
)

// Ways to make the tunnel's headers; on the wire they are the same.
const (
	TunnelAuto   = "auto"   // the better one for the node
	TunnelNetdev = "netdev" // by the kernel's VXLAN device
	TunnelEBPF   = "ebpf"   // by the programs
)

// tunnelMake is how this node makes the tunnel's headers.
type tunnelMake struct {
	way, why string
	// probes is where path probes are sent from and answered to.
	probes  *net.UDPConn
	ifindex int // of the device; 0: there is none
	lost    lostDevice
}

// chooseTunnel decides how headers are made, and why so. has reports whether the
// kernel has VXLAN devices. See docs/adr/0019.
func chooseTunnel(asked, underlayType string, has func() (bool, error), log *slog.Logger) (way, why string, err error) {
	if asked == TunnelEBPF {
		return TunnelEBPF, "asked for", nil
	}
	if asked != TunnelNetdev && underlayType == "veth" {
		return TunnelEBPF, "the underlay is a veth, on which that is faster", nil
	}
	ok, err := has()
	switch {
	case asked == TunnelNetdev && err != nil:
		return "", "", fmt.Errorf("--tunnel-datapath=netdev: %w", err)
	case asked == TunnelNetdev && !ok:
		return "", "", fmt.Errorf("--tunnel-datapath=netdev: %w", netdev.ErrNoVXLAN)
	case asked == TunnelNetdev:
		return TunnelNetdev, "asked for", nil
	case err != nil:
		log.Warn("it is not known whether the kernel has VXLAN devices; the programs make the tunnel's headers, which works and may be slower",
			"error", err, "fix", "see that the agent has CAP_NET_ADMIN and that the module vxlan can be loaded, and restart it; or say which with --tunnel-datapath=netdev or =ebpf")
		return TunnelEBPF, "whether the kernel has VXLAN devices is not known: " + err.Error(), nil
	case !ok:
		return TunnelEBPF, "the kernel has no VXLAN devices", nil
	}
	return TunnelNetdev, "the kernel has VXLAN devices", nil
}

// openTunnel chooses how headers are made and makes the device for it. Nothing
// uses it before the programs do.
func (a *Agent) openTunnel(ctx context.Context, underlayType string) error {
	t := &a.tunnel
	var err error
	if t.way, t.why, err = chooseTunnel(a.cfg.TunnelDatapath, underlayType, features.VXLAN, a.log); err != nil {
		return err
	}
	a.log.Info("tunnel headers are made by "+t.way, "why", t.why, "port", a.cfg.TunnelPort)
	if t.way == TunnelNetdev {
		t.ifindex, err = netdev.EnsureTunnelDevice(ctx, netdev.TunnelConfig{Port: a.cfg.TunnelPort})
	}
	return err
}

// device is the name of the tunnel's device; empty when there is none.
func (t *tunnelMake) device() string {
	if t.way == TunnelNetdev {
		return netdev.TunnelDevice
	}
	return ""
}

// attachTunnel puts the program on the tunnel's device, or does away with a device
// that an earlier agent had: the programs make the headers since they were opened.
func (a *Agent) attachTunnel() error {
	if err := a.dp.AttachTunnel(); err != nil {
		return netdev.PortInUse(a.cfg.TunnelPort, err)
	}
	if a.tunnel.way == TunnelNetdev {
		return netdev.SetTunnelUp(a.cfg.TunnelPort)
	}
	return netdev.DeleteTunnelDevice()
}

// openProbes opens the socket of path probes. Where the programs take the tunnel's
// packets it holds the tunnel's port; else the device does.
func (a *Agent) openProbes(ctx context.Context) (err error) {
	if a.tunnel.way == TunnelEBPF {
		a.tunnel.probes, err = holdTunnelPort(ctx, netip.AddrPortFrom(a.cfg.NodeAddress, a.cfg.TunnelPort))
		return err
	}
	a.tunnel.probes, err = listenUDP(ctx, netip.AddrPortFrom(a.cfg.NodeAddress, 0))
	if err != nil {
		return fmt.Errorf("open the socket of path probes: %w", err)
	}
	return nil
}

// keepTunnel puts the tunnel's device back when somebody removes or changes it,
// until the context ends.
func (a *Agent) keepTunnel(ctx context.Context) error {
	if a.tunnel.way != TunnelNetdev {
		return nil
	}
	return keepDevices(ctx, a.log, func(bool) { a.tunnel.note(a.putTunnelBack(ctx), a.log) }, netdev.TunnelDevice)
}

// putTunnelBack makes the device as the programs know it: by its index.
func (a *Agent) putTunnelBack(ctx context.Context) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the agent ends; the device stays as it is
	}
	there, err := netdev.TunnelDeviceExists()
	if err != nil {
		return err
	}
	if !there && !a.tunnel.lost.is() { // else it was said
		a.log.Warn("somebody removed the tunnel's device; it is put back", "device", netdev.TunnelDevice)
	}
	if _, err := netdev.EnsureTunnelDevice(ctx, netdev.TunnelConfig{Port: a.cfg.TunnelPort, IfIndex: a.tunnel.ifindex}); err != nil {
		return err
	}
	return a.attachTunnel()
}

// note remembers why the device is not there, and tells when that changes.
func (t *tunnelMake) note(err error, log *slog.Logger) { t.lost.note(netdev.TunnelDevice, err, log) }

// problems says that there is no device.
func (t *tunnelMake) problems() []*hawserv1.Problem {
	return t.lost.problems(netdev.TunnelDevice, "no traffic leaves the node by the tunnel",
		"; restart the agent, or start it with --tunnel-datapath=ebpf")
}
