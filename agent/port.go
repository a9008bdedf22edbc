// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// holdTunnelPort binds the tunnel's UDP port and reads nothing from it: the
// programs take tunnel packets before any socket sees them. So another tunnel on
// the port is found at start, and strays draw no ICMP error. The caller closes
// it.
func holdTunnelPort(ctx context.Context, addr netip.AddrPort) (net.PacketConn, error) {
	var lc net.ListenConfig
	conn, err := lc.ListenPacket(ctx, "udp4", addr.String())
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("UDP port %s is in use, probably by another tunnel (see: ss -lunp, ip -d link show type vxlan); "+
			"remove that, or choose another --tunnel-port in the whole mesh", addr)
	}
	if err != nil {
		return nil, fmt.Errorf("bind the tunnel's UDP port: %w", err)
	}
	if udp, ok := conn.(*net.UDPConn); ok {
		_ = udp.SetReadBuffer(1) // the kernel's least
	}
	return conn, nil
}
