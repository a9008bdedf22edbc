// SPDX-License-Identifier: Apache-2.0

// Package sockets ends sockets whose peer is gone: the programs of a service's
// load balancing have connected them to a backend that serves no longer, so that
// their owner would wait for nobody.
//
// Start with Destroy. Which sockets those are is the caller's matter.
package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Parts of struct inet_diag_req_v2 and inet_diag_msg (linux/inet_diag.h).
const (
	requestSize  = 56
	requestState = 4 // offset of the states asked for
	requestID    = 8 // offset of struct inet_diag_sockid
	messageID    = 4
	idSize       = 48
	idCookie     = 40 // offset in the id

	allStates = 1<<32 - 1
	// idle sockets of TCP have no owner to tell: TIME_WAIT, CLOSE, LISTEN and
	// NEW_SYN_RECV, as bits of their numbers.
	idleStates = 1<<6 | 1<<7 | 1<<10 | 1<<12
)

// Destroy ends the IPv4 and IPv6 sockets with these cookies in the current network
// namespace, by SOCK_DESTROY, if they still have the peer that is told; their
// owners get ECONNABORTED. It returns how many there were. A kernel without CONFIG_INET_DIAG_DESTROY gives an error that is
// EOPNOTSUPP.
func Destroy(cookies map[uint64]netip.AddrPort) (n int, err error) {
	if len(cookies) == 0 {
		return 0, nil
	}
	for _, k := range []kind{
		{unix.AF_INET, unix.IPPROTO_TCP}, {unix.AF_INET, unix.IPPROTO_UDP},
		{unix.AF_INET6, unix.IPPROTO_TCP}, {unix.AF_INET6, unix.IPPROTO_UDP},
	} {
		ids, lerr := list(k)
		err = errors.Join(err, lerr)
		for _, id := range ids {
			if to, doomed := cookies[cookie(id)]; !doomed || to != k.peer(id) {
				continue
			}
			derr := destroy(k, id)
			if errors.Is(derr, unix.ENOENT) {
				continue // it went meanwhile
			}
			if err = errors.Join(err, derr); derr == nil {
				n++
			}
		}
	}
	return n, err
}

// kind is which sockets a request is about.
type kind struct{ family, proto uint8 }

func (k kind) String() string { return fmt.Sprintf("family %d, protocol %d", k.family, k.proto) }

// peer is the destination in struct inet_diag_sockid: two ports and two addresses.
func (k kind) peer(id []byte) netip.AddrPort {
	const port, addr = 2, 4 + 16
	to := netip.AddrFrom4([4]byte(id[addr:]))
	if k.family == unix.AF_INET6 {
		to = netip.AddrFrom16([16]byte(id[addr:])).Unmap() // IPv6 sockets also go to IPv4 addresses
	}
	return netip.AddrPortFrom(to, binary.BigEndian.Uint16(id[port:]))
}

func cookie(id []byte) uint64 { return binary.NativeEndian.Uint64(id[idCookie:]) }

// list returns the ids of all sockets of a kind.
func list(k kind) ([][]byte, error) {
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	states := uint32(allStates)
	if k.proto == unix.IPPROTO_TCP {
		states &^= idleStates
	}
	req.AddRawData(request(k, states, nil))
	messages, err := req.Execute(unix.NETLINK_SOCK_DIAG, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // the protocol's module is not there, so it has no sockets
	}
	if err != nil {
		return nil, fmt.Errorf("list sockets of %s: %w", k, err)
	}
	var ids [][]byte
	for _, m := range messages {
		if len(m) >= messageID+idSize {
			ids = append(ids, m[messageID:messageID+idSize])
		}
	}
	return ids, nil
}

func destroy(k kind, id []byte) error {
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddRawData(request(k, allStates, id))
	if _, err := req.Execute(unix.NETLINK_SOCK_DIAG, 0); err != nil {
		return fmt.Errorf("destroy socket of %s: %w", k, err)
	}
	return nil
}

func request(k kind, states uint32, id []byte) []byte {
	b := make([]byte, requestSize)
	b[0], b[1] = k.family, k.proto
	binary.NativeEndian.PutUint32(b[requestState:], states)
	copy(b[requestID:], id)
	return b
}
