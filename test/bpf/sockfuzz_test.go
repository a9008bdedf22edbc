// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
)

// socketRounds are the random calls of each seed.
const socketRounds = 4000

// TestFuzzSockets makes random calls with well and badly formed addresses on
// sockets of both families in a cgroup with the programs on it: whatever a program
// does with the address, a socket shows one that it asked for, never a backend that
// it did not.
func TestFuzzSockets(t *testing.T) {
	h := newHarness(t)
	dir := h.cgroup()
	h.answers("127.0.0.1:8080")
	h.answers("[::1]:8080")
	for _, proto := range []uint8{tcp, udp} {
		for ip, backends := range map[string][]string{vip: {"127.0.0.1", "127.0.0.2"}, vip6: {"::1", "127.0.0.1"}} {
			front := datapath.Frontend{Service: 1}
			for _, b := range backends {
				front.Backends = append(front.Backends, datapath.Backend{Addr: addr(b), Port: 8080})
			}
			h.tables.Frontends.Set(datapath.FrontendKey{Addr: addr(ip), Port: 80, Protocol: proto}, front)
			h.tables.Frontends.Set(datapath.FrontendKey{Addr: addr(ip), Port: 81, Protocol: proto}, datapath.Frontend{Service: 2})
		}
	}
	h.sync()
	var ways []string
	for seed := range 3 * fuzzTimes(t) {
		ways = append(ways, fmt.Sprintf("fuzz=0.0.0.%d:%d", seed, socketRounds), fmt.Sprintf("fuzz=[::%d]:%d", seed, socketRounds))
	}
	for i, saw := range h.asks(dir, ways...) {
		if !strings.HasPrefix(saw, "ok ") {
			t.Errorf("%s: %s", ways[i], saw)
		}
		t.Logf("%s: %s", ways[i], saw)
	}
}

// fuzzSockets is the child's part: the last byte of an address of the family is the
// seed. It tells how many calls were answered how.
func fuzzSockets(by netip.Addr, rounds int) (string, error) {
	f := socketFuzzer{Rand: rand.New(rand.NewPCG(uint64(by.As16()[15]), 1)), family: unix.AF_INET}
	if by.Is6() {
		f.family = unix.AF_INET6
	}
	connected, refused := 0, 0
	for round := range rounds {
		ok, err := f.socket()
		if err != nil {
			return "", fmt.Errorf("round %d: %w", round, err)
		}
		if ok {
			connected++
		} else {
			refused++
		}
	}
	if connected == 0 || refused == 0 {
		return "", fmt.Errorf("%d calls worked and %d did not: this proves nothing", connected, refused)
	}
	return fmt.Sprintf("ok %d worked, %d did not", connected, refused), nil
}

// socketFuzzer makes calls on sockets of one family.
type socketFuzzer struct {
	*rand.Rand
	family int
}

// socket is a few calls on one socket.
func (f socketFuzzer) socket() (ok bool, err error) {
	kind := []int{unix.SOCK_DGRAM, unix.SOCK_DGRAM, unix.SOCK_STREAM}[f.IntN(3)]
	fd, err := unix.Socket(f.family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	var asked []netip.AddrPort
	disconnected := false
	for range 1 + f.IntN(4) {
		to := f.address()
		switch f.IntN(5) {
		case 0: // as long as nobody would make it
			f.nonsense(fd)
			return false, nil
		case 1: // a datagram, with any length; its answers come from who was asked
			asked = append(asked, to)
			_ = unix.Sendto(fd, make([]byte, f.IntN(3000)), unix.MSG_DONTWAIT, sockaddr(to))
		case 2: // disconnects
			var raw [28]byte
			binary.NativeEndian.PutUint16(raw[:], unix.AF_UNSPEC)
			_, _, _ = unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&raw[0])), []uintptr{16, 28}[f.IntN(2)])
			disconnected = true
		case 3:
			_, _, _ = unix.Recvfrom(fd, make([]byte, 64), unix.MSG_DONTWAIT)
		default:
			asked = append(asked, to)
			err := unix.Connect(fd, sockaddr(to))
			if err != nil && !errors.Is(err, unix.EINPROGRESS) {
				continue
			}
			if kind == unix.SOCK_DGRAM && !disconnected {
				asked = asked[len(asked)-1:]
			}
			if err := showsPeer(fd, asked); err != nil {
				return false, err
			}
			ok = true
		}
	}
	return ok, nil
}

// nonsense asks for an address of random bytes and a random length, half the time of
// a family that there is.
func (f socketFuzzer) nonsense(fd int) {
	raw := make([]byte, 64)
	for i := range raw {
		raw[i] = byte(f.Uint32())
	}
	if f.IntN(2) == 0 {
		binary.NativeEndian.PutUint16(raw, []uint16{unix.AF_INET, unix.AF_INET6}[f.IntN(2)])
	}
	call := []uintptr{unix.SYS_CONNECT, unix.SYS_BIND}[f.IntN(2)]
	_, _, _ = unix.Syscall(call, uintptr(fd), uintptr(unsafe.Pointer(&raw[0])), uintptr(f.IntN(64)))
}

// showsPeer wants an address that was asked for, once the socket has one. That is
// what a datagram socket was connected to last, unless it was disconnected between:
// a backend that it had through a service may then be shown as that service.
func showsPeer(fd int, asked []netip.AddrPort) error {
	peer, err := unix.Getpeername(fd)
	if errors.Is(err, unix.ENOTCONN) { // refused already, or still connecting
		return nil
	}
	if err != nil {
		return err
	}
	if shown := addrPort(peer); !slices.Contains(asked, shown) {
		return fmt.Errorf("asked for %v, the socket shows %s", asked, shown)
	}
	return nil
}

// address is a service's, a backend's, or any; never the unspecified one and port 0,
// which the kernel itself shows as something else. IPv6 sockets speak IPv4, too.
func (f socketFuzzer) address() netip.AddrPort {
	port := []uint16{80, 81, 8080, uint16(1 + f.IntN(65535))}[f.IntN(4)]
	pool := []string{vip, vip, "127.0.0.1", "127.0.0.2", "127.0.0.3", "255.255.255.255", "224.0.0.1", "169.254.1.1"}
	if f.family == unix.AF_INET6 {
		pool = []string{vip6, vip6, vip6, "::1", "::2", "::ffff:" + vip, "::ffff:127.0.0.1", "::ffff:127.0.0.3", "ff02::1", "fe80::1", self6}
	}
	if n := f.IntN(len(pool) + 1); n < len(pool) {
		return netip.AddrPortFrom(addr(pool[n]), port)
	}
	if f.family == unix.AF_INET {
		var a [4]byte
		binary.NativeEndian.PutUint32(a[:], 1+f.Uint32N(1<<32-1))
		return netip.AddrPortFrom(netip.AddrFrom4(a), port)
	}
	var a [16]byte
	binary.NativeEndian.PutUint64(a[:], f.Uint64())
	binary.NativeEndian.PutUint64(a[8:], 1+f.Uint64N(1<<63))
	return netip.AddrPortFrom(netip.AddrFrom16(a), port)
}
