// SPDX-License-Identifier: Apache-2.0

// Package ports gives tests ports of loopback for servers that must be told
// theirs before they start, or come back at the same one. A port that was merely
// free a moment ago may be another process's a moment later, as the source of a
// connection or by listening on port 0; these are none that the kernel gives out,
// and no other test process is given them. A server that can listen on port 0 and
// tell which one it got needs none of this.
package ports

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// lowest is the first port given: below are those of well-known services.
const lowest = 10_000

// Free is a port of 127.0.0.1 that is free for TCP and UDP, and the caller's
// until the test ends, whatever other processes do that ask here or not at all.
func Free(tb testing.TB) netip.AddrPort {
	tb.Helper()
	end, err := kernelsFirst()
	if err != nil {
		tb.Fatalf("find a port: %v", err)
	}
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("hawser-test-ports-%d", os.Getuid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		tb.Fatalf("find a port: %v", err)
	}
	start, n := rand.IntN(end-lowest), end-lowest
	for i := range n {
		port := uint16(lowest + (start+i)%n)
		unlock, err := lock(filepath.Join(dir, fmt.Sprint(port)))
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			tb.Fatalf("find a port: %v", err)
		}
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
		if !free(at) {
			unlock()
			continue
		}
		tb.Cleanup(unlock)
		return at
	}
	tb.Fatalf("find a port: none of %d-%d is free", lowest, end-1)
	return netip.AddrPort{}
}

// kernelsFirst is the first of the ports that the kernel gives out.
func kernelsFirst() (int, error) {
	raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return 0, err
	}
	var first, last int
	if _, err := fmt.Sscan(string(raw), &first, &last); err != nil {
		return 0, err
	}
	if first <= lowest {
		return 0, fmt.Errorf("net.ipv4.ip_local_port_range begins at %d and leaves none", first)
	}
	return first, nil
}

// lock takes the lock of a file, which ends with the process at the latest.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// free asks for both protocols on all addresses: who has the port on any is in
// the way. Meanwhile this process makes no child, which would have the sockets open
// until it executes its program.
func free(at netip.AddrPort) bool {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	port := fmt.Sprintf(":%d", at.Port())
	l, err := net.Listen("tcp4", port) //nolint:noctx // at once
	if err != nil {
		return false
	}
	defer l.Close()
	c, err := net.ListenPacket("udp4", port) //nolint:noctx // at once
	if err != nil {
		return false
	}
	return c.Close() == nil
}
