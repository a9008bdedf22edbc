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

// holdTunnelPort binds the tunnel's UDP port. The programs take tunnel packets
// before any socket sees them, all but the answers to our path probes. So another
// tunnel on the port is found at start, and strays draw no ICMP error. The caller
// closes it.
func holdTunnelPort(ctx context.Context, addr netip.AddrPort) (*net.UDPConn, error) {
	udp, err := listenUDP(ctx, addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("UDP port %s is in use, probably by another tunnel (see: ss -lunp, ip -d link show type vxlan); "+
			"remove that, or choose another --tunnel-port in the whole mesh", addr)
	}
	if err != nil {
		return nil, fmt.Errorf("bind the tunnel's UDP port: %w", err)
	}
	return udp, nil
}

// listenUDP binds a socket of IPv4.
func listenUDP(ctx context.Context, addr netip.AddrPort) (*net.UDPConn, error) {
	var lc net.ListenConfig
	conn, err := lc.ListenPacket(ctx, "udp4", addr.String())
	if err != nil {
		return nil, err
	}
	udp, ok := conn.(*net.UDPConn)
	if !ok { // never: that is what udp4 is
		return nil, errors.Join(fmt.Errorf("listen on %s: a %T", addr, conn), conn.Close())
	}
	return udp, nil
}
