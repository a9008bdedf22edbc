// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"os"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
)

// flowMap is a map of flows, or of another kind.
func flowMap[K, V any](t *testing.T) *ebpf.Map {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes an eBPF map")
	}
	var k K
	var v V
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, MaxEntries: 4, KeySize: uint32(unsafe.Sizeof(k)), ValueSize: uint32(unsafe.Sizeof(v))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// A flow that is established while the collector looks for it keeps its port; one
// that is nowhere does not.
func TestPromotedFlowKeepsItsPort(t *testing.T) {
	snat, established, open := flowMap[SNATKey, SNATEntry](t), flowMap[Tuple4, CTEntry](t), flowMap[Tuple4, CTEntry](t)
	k := SNATKey{Remote: [4]byte{192, 0, 2, 9}, RemotePort: PortFrom(443), Port: PortFrom(40000), Protocol: ProtocolTCP}
	v := SNATEntry{Addr: [4]byte{10, 1, 0, 5}, Port: PortFrom(1000), Created: 1}
	flow := Tuple4{Source: v.Addr, Destination: k.Remote, SourcePort: v.Port, DestPort: k.RemotePort, Protocol: k.Protocol}.FlowKey()
	e := CTEntry{SNATPort: 40000}
	if err := errors.Join(snat.Put(k, v), open.Put(flow, e)); err != nil {
		t.Fatal(err)
	}
	// As ct_promote does it.
	promote := func() {
		if err := established.Put(flow, e); err != nil {
			t.Error(err)
		}
		if err := open.Delete(flow); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Error(err)
		}
	}
	for round := range 2 { // in the one map, then in the other
		if seen, deleted, err := collectMasquerade[SNATKey, SNATEntry](snat, established, open, 10, 1000, promote); err != nil || seen != 1 || deleted != 0 {
			t.Errorf("round %d: %d ports seen, %d deleted, %v", round, seen, deleted, err)
		}
		promote()
	}
	if err := established.Delete(flow); err != nil {
		t.Error(err)
	}
	if _, deleted, err := CollectMasquerade[SNATKey, SNATEntry](snat, established, open, 10, 1000); err != nil || deleted != 1 {
		t.Errorf("the flow is gone: %d deleted, %v", deleted, err)
	}
}

// A port that another flow has got since it was found forgotten stays.
func TestPortOfAnotherFlowStays(t *testing.T) {
	snat, established, open := flowMap[SNATKey, SNATEntry](t), flowMap[Tuple4, CTEntry](t), flowMap[Tuple4, CTEntry](t)
	k, other := SNATKey{Port: PortFrom(40000)}, SNATEntry{Port: PortFrom(1001), Created: 999}
	if err := snat.Put(k, SNATEntry{Port: PortFrom(1000), Created: 1}); err != nil {
		t.Fatal(err)
	}
	takes := func() {
		if err := snat.Put(k, other); err != nil {
			t.Error(err)
		}
	}
	if _, deleted, err := collectMasquerade[SNATKey, SNATEntry](snat, established, open, 10, 1000, takes); err != nil || deleted != 0 {
		t.Errorf("%d deleted, %v", deleted, err)
	}
	var is SNATEntry
	if err := snat.Lookup(k, &is); err != nil || is != other {
		t.Errorf("the port is of %+v, %v", is, err)
	}
}

// A client that has finished waits for its answer longer than a closed flow lasts.
func TestHalfClosedServiceFlowStays(t *testing.T) {
	limits := Timeouts{TCP: 1000, HalfOpen: 60, Closing: 10, FinSent: 120, Other: 60}
	for _, c := range []struct {
		flags uint16
		tcp   uint8
		want  uint32
	}{
		{CTService, 0, 1000}, {CTService, CTFinForward, 120}, {CTService, CTFinForward | CTFinReply, 10},
		{CTService, CTReset, 10}, {CTService, CTFinForward | CTReset, 10},
		{0, CTFinForward, 1000}, {CTNAT, CTFinForward, 1000}, {CTNAT, CTFinForward | CTFinReply, 10}, {0, CTReset, 10},
	} {
		e := CTEntry{Flags: CTReplied | c.flags, TCP: c.tcp, LastSeen: 5000}
		if limits.Expired(ProtocolTCP, e, 5000+c.want) || !limits.Expired(ProtocolTCP, e, 5001+c.want) {
			t.Errorf("flags %x, tcp %x: not %d", c.flags, c.tcp, c.want)
		}
	}
}

// A flow that was used after the walk had found it silent is kept.
func TestFlowUsedMeanwhileIsKept(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes an eBPF map")
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.Hash, MaxEntries: 4,
		KeySize: uint32(unsafe.Sizeof(Tuple4{})), ValueSize: uint32(unsafe.Sizeof(CTEntry{})),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	const now = 1000
	limits := Timeouts{TCP: 100, HalfOpen: 100, Closing: 100, Other: 100}
	silent, used := Tuple4{Protocol: ProtocolTCP, SourcePort: PortFrom(1)}, Tuple4{Protocol: ProtocolTCP, SourcePort: PortFrom(2)}
	for _, k := range []Tuple4{silent, used} {
		if err := m.Put(k, CTEntry{LastSeen: now - 200}); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Put(used, CTEntry{LastSeen: now - 1}); err != nil { // the packet that came meanwhile
		t.Fatal(err)
	}
	if n, err := deleteExpired(m, []Tuple4{silent, used, {Protocol: 17}}, limits, now); err != nil || n != 1 {
		t.Errorf("%d flows deleted, %v", n, err)
	}
	var e CTEntry
	if err := m.Lookup(used, &e); err != nil {
		t.Errorf("the flow that was used: %v", err)
	}
	if err := m.Lookup(silent, &e); err == nil {
		t.Error("the silent flow is still there")
	}
}
