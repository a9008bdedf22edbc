// SPDX-License-Identifier: Apache-2.0

// Package laterbuild makes what a later version of the programs could be out of
// those that there are, so that upgrades can be tested before there is one. For
// tests only: test/e2e builds an agent with it in the place of objects.LoadHawser.
package laterbuild

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// Alter adds a field to the entries of policy, changes the flags of conntrack's
// maps and the instructions of all programs.
func Alter(spec *ebpf.CollectionSpec) {
	const added = 8 // bytes
	p := spec.Maps["policy"]
	if was, ok := p.Value.(*btf.Struct); ok {
		later := *was
		later.Size += added
		later.Members = append(append([]btf.Member{}, was.Members...), btf.Member{
			Name: "later", Type: &btf.Int{Name: "u64", Size: added}, Offset: btf.Bits(was.Size) * 8,
		})
		p.Value, p.ValueSize = &later, later.Size
	}
	spec.Maps["ct4"].Flags ^= unix.BPF_F_NO_PREALLOC
	spec.Maps["ct6"].Flags ^= unix.BPF_F_NO_PREALLOC // only programs that others jump to have it
	for _, prog := range spec.Programs {
		first := asm.Mov.Imm(asm.R0, 0)
		first.Metadata = prog.Instructions[0].Metadata
		prog.Instructions[0].Metadata = asm.Metadata{}
		prog.Instructions = append(asm.Instructions{first}, prog.Instructions...)
	}
}
