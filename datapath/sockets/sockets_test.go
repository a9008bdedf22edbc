// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func cookieOf(t *testing.T, c syscall.Conn) uint64 {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n uint64
	cerr := raw.Control(func(fd uintptr) { n, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE) })
	if err := errors.Join(cerr, err); err != nil {
		t.Fatal(err)
	}
	return n
}

// Of sockets with the same peer only those that are named end.
func TestDestroy(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: ends sockets by netlink")
	}
	for _, network := range []string{"tcp4", "udp4", "tcp6", "udp6"} {
		t.Run(network, func(t *testing.T) {
			var addr string
			host := map[bool]string{false: "127.0.0.1:0", true: "[::1]:0"}[strings.HasSuffix(network, "6")]
			if strings.HasPrefix(network, "tcp") {
				var lc net.ListenConfig
				lc.SetMultipathTCP(false)
				lis, err := lc.Listen(t.Context(), network, host)
				if err != nil {
					t.Fatal(err)
				}
				defer lis.Close()
				addr = lis.Addr().String()
			} else {
				lis, err := net.ListenPacket(network, host)
				if err != nil {
					t.Fatal(err)
				}
				defer lis.Close()
				addr = lis.LocalAddr().String()
			}
			var conns [2]net.Conn
			for i := range conns {
				var d net.Dialer
				d.SetMultipathTCP(false)
				c, err := d.DialContext(t.Context(), network, addr)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				conns[i] = c
			}
			to, first := netip.MustParseAddrPort(addr), cookieOf(t, conns[0].(syscall.Conn))
			elsewhere := netip.AddrPortFrom(to.Addr(), to.Port()^1)
			if n, err := Destroy(map[uint64]netip.AddrPort{first: elsewhere}); n != 0 || err != nil {
				t.Fatalf("destroyed %d that had gone elsewhere: %v", n, err)
			}
			n, err := Destroy(map[uint64]netip.AddrPort{first: to, 1<<63 + 7: to})
			if errors.Is(err, unix.EOPNOTSUPP) {
				t.Skip("this kernel has no SOCK_DESTROY")
			}
			if err != nil || n != 1 {
				t.Fatalf("destroyed %d: %v", n, err)
			}
			_ = conns[0].SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := conns[0].Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
				t.Errorf("reading from the destroyed socket: %v", err)
			}
			if _, err := conns[1].Write([]byte("x")); err != nil {
				t.Errorf("the other socket: %v", err)
			}
		})
	}
}
