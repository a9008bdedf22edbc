// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// Timeouts are how long a flow may be silent, in jiffies.
type Timeouts struct {
	TCP      uint32 // established
	HalfOpen uint32 // not answered yet, or the answer not confirmed
	Closing  uint32 // both sides have finished, or one has reset
	// FinSent is for a flow to a service, of which only the client's side is known,
	// that the client has finished: the server may still work on its answer.
	FinSent uint32
	Other   uint32 // UDP, ICMP and the rest, answered
}

// ProtocolTCP is IANA's number.
const ProtocolTCP = 6

// Expired reports whether a flow has been silent for too long. Jiffies wrap: an
// entry touched after now was read is not old.
func (t Timeouts) Expired(protocol uint8, e CTEntry, now uint32) bool {
	age := int32(now - e.LastSeen)
	return age > 0 && uint32(age) > t.limit(protocol, e)
}

// OfHalfOpen are the timeouts of the maps of half-open flows: TCP that is answered
// is there until who opened it has confirmed the answer, and has not long for it.
func (t Timeouts) OfHalfOpen() Timeouts {
	t.TCP = t.HalfOpen
	return t
}

func (t Timeouts) limit(protocol uint8, e CTEntry) uint32 {
	if e.Flags&CTReplied == 0 {
		return t.HalfOpen
	}
	if protocol != ProtocolTCP {
		return t.Other
	}
	const closed = CTFinForward | CTFinReply
	switch {
	case e.TCP&CTReset != 0 || e.TCP&closed == closed:
		return t.Closing
	case e.Flags&CTService != 0 && e.TCP&CTFinForward != 0:
		return t.FinSent
	}
	return t.TCP
}

// FlowKey is a conntrack key, of IPv4 or IPv6.
type FlowKey interface {
	comparable
	protocol() uint8
	ends() [2]netip.Addr
}

func (t Tuple4) protocol() uint8 { return t.Protocol }
func (t Tuple6) protocol() uint8 { return t.Protocol }

func (t Tuple4) ends() [2]netip.Addr {
	return [2]netip.Addr{netip.AddrFrom4(t.Source), netip.AddrFrom4(t.Destination)}
}

func (t Tuple6) ends() [2]netip.Addr {
	return [2]netip.Addr{netip.AddrFrom16(t.Source), netip.AddrFrom16(t.Destination)}
}

// ForgetFlows deletes the flows that begin or end at an address that is gone and
// returns how many.
func ForgetFlows[K FlowKey](m *ebpf.Map, gone func(netip.Addr) bool) (deleted int, err error) {
	var flows []K
	err = DumpBatches(m, func(k K, _ CTEntry) {
		ends := k.ends()
		if gone(ends[0]) || gone(ends[1]) {
			flows = append(flows, k)
		}
	})
	for _, k := range flows {
		if derr := m.Delete(k); derr != nil && !errors.Is(derr, ebpf.ErrKeyNotExist) {
			return deleted, errors.Join(err, fmt.Errorf("delete flow: %w", derr))
		}
		deleted++
	}
	return deleted, err
}

// CollectConntrack deletes expired flows and returns how many it saw and
// deleted. It walks in batches and never holds up the datapath: an element is
// read again right before it is deleted, and kept if it was used meanwhile.
func CollectConntrack[K FlowKey](m *ebpf.Map, t Timeouts, now uint32) (seen, deleted int, err error) {
	var expired []K
	err = DumpBatches(m, func(k K, e CTEntry) {
		seen++
		if t.Expired(k.protocol(), e, now) {
			expired = append(expired, k)
		}
	})
	if err != nil {
		return seen, 0, err
	}
	deleted, err = deleteExpired(m, expired, t, now)
	return seen, deleted, err
}

// deleteExpired deletes those of flows that are still silent.
func deleteExpired[K FlowKey](m *ebpf.Map, flows []K, t Timeouts, now uint32) (deleted int, err error) {
	for _, k := range flows {
		var e CTEntry
		if err := m.Lookup(k, &e); err != nil || !t.Expired(k.protocol(), e, now) {
			continue
		}
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return deleted, fmt.Errorf("delete flow: %w", err)
		}
		deleted++
	}
	return deleted, nil
}

// MasqueradeKey is how the outside sees a flow, of IPv4 or IPv6; V is the pod's end.
type MasqueradeKey[V any] interface {
	comparable
	// flow is the conntrack key of the pod's flow.
	flow(v V) any
	port() uint16
}

// MasqueradeEntry is the pod's end of a masqueraded flow.
type MasqueradeEntry interface {
	comparable
	created() uint32
}

func (e SNATEntry) created() uint32  { return e.Created }
func (e SNAT6Entry) created() uint32 { return e.Created }
func (k SNATKey) port() uint16       { return k.Port.Uint16() }
func (k SNAT6Key) port() uint16      { return k.Port.Uint16() }

func (k SNATKey) flow(v SNATEntry) any {
	return Tuple4{Source: v.Addr, Destination: k.Remote, SourcePort: v.Port, DestPort: k.RemotePort, Protocol: k.Protocol}.FlowKey()
}

func (k SNAT6Key) flow(v SNAT6Entry) any {
	return Tuple6{Source: v.Addr, Destination: k.Remote, SourcePort: v.Port, DestPort: k.RemotePort, Protocol: k.Protocol}.FlowKey()
}

// CollectMasquerade deletes those ports of a map, of established flows or of half-open
// ones, whose flows both conntrack maps have forgotten, and returns how many it saw and
// deleted. Ports younger than grace jiffies are left: their flow may be about to be made.
func CollectMasquerade[K MasqueradeKey[V], V MasqueradeEntry](snat, established, open *ebpf.Map, grace, now uint32) (seen, deleted int, err error) {
	return collectMasquerade[K, V](snat, established, open, grace, now, func() {})
}

// collectMasquerade calls asked after each look into a conntrack map.
func collectMasquerade[K MasqueradeKey[V], V MasqueradeEntry](snat, established, open *ebpf.Map, grace, now uint32, asked func()) (seen, deleted int, err error) {
	// A flow that is established meanwhile comes into the one map, then leaves the
	// other: asked in this order, one of them has it.
	inUse := func(k K, v V) bool {
		for _, flows := range []*ebpf.Map{open, established} {
			if masquerades(k, v, flows) {
				return true
			}
			asked()
		}
		return false
	}
	gone := map[K]V{}
	err = DumpBatches(snat, func(k K, v V) {
		seen++
		if int32(now-v.created()) > int32(grace) && !inUse(k, v) {
			gone[k] = v
		}
	})
	for k, v := range gone {
		var is V
		if lerr := snat.Lookup(k, &is); lerr != nil || is != v {
			continue // its place is another flow's meanwhile
		}
		if derr := snat.Delete(k); derr != nil && !errors.Is(derr, ebpf.ErrKeyNotExist) {
			return seen, deleted, errors.Join(err, fmt.Errorf("delete masquerade port: %w", derr))
		}
		deleted++
	}
	return seen, deleted, err
}

// masquerades reports whether a conntrack map has the flow that uses a port.
func masquerades[K MasqueradeKey[V], V any](k K, v V, flows *ebpf.Map) bool {
	var e CTEntry
	if err := flows.Lookup(k.flow(v), &e); err != nil {
		return !errors.Is(err, ebpf.ErrKeyNotExist)
	}
	return e.Flags&CTNAT != 0 || e.SNATPort == k.port()
}

// FlowKey is the tuple as conntrack has it: the lower address first, as
// flow_key orders them.
func (t Tuple4) FlowKey() Tuple4 {
	word := func(a [4]byte) uint32 { return binary.LittleEndian.Uint32(a[:]) }
	half := func(p Port) uint16 { return binary.LittleEndian.Uint16(p[:]) }
	src, dst := word(t.Source), word(t.Destination)
	if src > dst || src == dst && half(t.SourcePort) > half(t.DestPort) {
		t.Source, t.Destination = t.Destination, t.Source
		t.SourcePort, t.DestPort = t.DestPort, t.SourcePort
	}
	return t
}

// FlowKey is the tuple as conntrack has it: the lower address first, as
// flow_key6 orders them.
func (t Tuple6) FlowKey() Tuple6 {
	half := func(p Port) uint16 { return binary.LittleEndian.Uint16(p[:]) }
	order := bytes.Compare(t.Source[:], t.Destination[:])
	if order > 0 || order == 0 && half(t.SourcePort) > half(t.DestPort) {
		t.Source, t.Destination = t.Destination, t.Source
		t.SourcePort, t.DestPort = t.DestPort, t.SourcePort
	}
	return t
}
