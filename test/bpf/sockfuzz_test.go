// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
)

// socketRounds are the random calls of each seed.
const socketRounds = 4000

// TestFuzzSockets makes random calls with well and badly formed addresses in a
// cgroup with the programs on it: whatever a program does with the address, a
// socket shows one that it asked for, never a backend that it did not.
func TestFuzzSockets(t *testing.T) {
	h := newHarness(t)
	dir := h.cgroup()
	h.answers("127.0.0.1:8080")
	for _, proto := range []uint8{tcp, udp} {
		h.tables.Frontends.Set(datapath.FrontendKey{Addr: netip.MustParseAddr(vip), Port: 80, Protocol: proto}, datapath.Frontend{
			Service: 1, Backends: []datapath.Backend{
				{Addr: netip.MustParseAddr("127.0.0.1"), Port: 8080}, {Addr: netip.MustParseAddr("127.0.0.2"), Port: 8080},
			},
		})
		h.tables.Frontends.Set(datapath.FrontendKey{Addr: netip.MustParseAddr(vip), Port: 81, Protocol: proto}, datapath.Frontend{Service: 2})
	}
	h.sync()
	var ways []string
	for seed := range 5 {
		ways = append(ways, fmt.Sprintf("fuzz=0.0.0.%d:%d", seed, socketRounds))
	}
	for seed, saw := range h.asks(dir, ways...) {
		if !strings.HasPrefix(saw, "ok ") {
			t.Errorf("seed %d: %s", seed, saw)
		}
		t.Logf("seed %d: %s", seed, saw)
	}
}

// fuzzSockets is the child's part. It tells how many calls were answered how.
func fuzzSockets(seed uint64, rounds int) (string, error) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	connected, refused := 0, 0
	for round := range rounds {
		ok, err := fuzzSocket(rnd)
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

// fuzzSocket is a few calls on one socket.
func fuzzSocket(rnd *rand.Rand) (ok bool, err error) {
	kind := []int{unix.SOCK_DGRAM, unix.SOCK_DGRAM, unix.SOCK_STREAM}[rnd.IntN(3)]
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	var asked []unix.SockaddrInet4
	disconnected := false
	for range 1 + rnd.IntN(4) {
		to := fuzzAddress(rnd)
		switch rnd.IntN(5) {
		case 0: // as long as nobody would make it
			raw := make([]byte, 64)
			for i := range raw {
				raw[i] = byte(rnd.Uint32())
			}
			call := []uintptr{unix.SYS_CONNECT, unix.SYS_BIND}[rnd.IntN(2)]
			_, _, _ = unix.Syscall(call, uintptr(fd), uintptr(unsafe.Pointer(&raw[0])), uintptr(rnd.IntN(64)))
			return false, nil
		case 1: // a datagram, with any length; its answers come from who was asked
			asked = append(asked, *to)
			_ = unix.Sendto(fd, make([]byte, rnd.IntN(3000)), unix.MSG_DONTWAIT, to)
		case 2: // disconnects
			var raw [16]byte
			binary.NativeEndian.PutUint16(raw[:], unix.AF_UNSPEC)
			_, _, _ = unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&raw[0])), 16)
			disconnected = true
		case 3:
			_, _, _ = unix.Recvfrom(fd, make([]byte, 64), unix.MSG_DONTWAIT)
		default:
			asked = append(asked, *to)
			err := unix.Connect(fd, to)
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

// showsPeer wants an address that was asked for, once the socket has one. That is
// what a datagram socket was connected to last, unless it was disconnected between:
// a backend that it had through a service may then be shown as that service.
func showsPeer(fd int, asked []unix.SockaddrInet4) error {
	peer, err := unix.Getpeername(fd)
	if errors.Is(err, unix.ENOTCONN) { // refused already, or still connecting
		return nil
	}
	if err != nil {
		return err
	}
	p, ok := peer.(*unix.SockaddrInet4)
	for _, a := range asked {
		if ok && p.Addr == a.Addr && p.Port == a.Port {
			return nil
		}
	}
	return fmt.Errorf("asked for %v, the socket shows %+v", asked, peer)
}

// fuzzAddress is a service's, a backend's, or any; never 0.0.0.0 and port 0, which
// the kernel itself shows as something else.
func fuzzAddress(rnd *rand.Rand) *unix.SockaddrInet4 {
	pool := []string{vip, vip, "127.0.0.1", "127.0.0.2", "127.0.0.3", "255.255.255.255", "224.0.0.1", "169.254.1.1"}
	a := &unix.SockaddrInet4{Port: []int{80, 81, 8080, 1 + rnd.IntN(65535)}[rnd.IntN(4)]}
	if n := rnd.IntN(len(pool) + 1); n < len(pool) {
		a.Addr = netip.MustParseAddr(pool[n]).As4()
	} else {
		binary.NativeEndian.PutUint32(a.Addr[:], 1+rnd.Uint32N(1<<32-1))
	}
	return a
}
