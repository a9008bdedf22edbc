// SPDX-License-Identifier: Apache-2.0

package load

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// receiveBuffer holds several seconds of datagrams, in bytes: a program that does
// not get the processor for a moment must not look like a network that loses
// packets.
const receiveBuffer = 16 << 20

// enlarge gives a socket the buffer, beyond the system's limit where it may
// (CAP_NET_ADMIN), else up to it. It is a net.Dialer's and net.ListenConfig's
// Control.
func enlarge(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
		}
	})
}
