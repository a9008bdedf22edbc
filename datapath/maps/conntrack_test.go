// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"os"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
)

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
