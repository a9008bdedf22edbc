// SPDX-License-Identifier: Apache-2.0

package crashpoint

import (
	"errors"
	"runtime"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Places on the program's stack.
const (
	key      = -8
	argument = -56 // the system call's arguments, 6 × 8 bytes
	pidTgid  = -64
	word     = -72 // what is read of the process
)

// Fields of the state: the number of changes so far, and before which one there is
// an end (0: never).
const (
	stateCount = 0
	stateNth   = 8
	stateSize  = 16
)

// registers are where struct pt_regs has the arguments of a system call.
func registers() ([]int32, error) {
	switch runtime.GOARCH {
	case "amd64":
		return []int32{112, 104, 96, 56, 72}, nil // di, si, dx, r10, r8
	case "arm64":
		return []int32{0, 8, 16, 24, 32}, nil
	}
	return nil, errors.New("where a system call's arguments are is not known of this architecture")
}

// read copies from the memory that R3 points to onto the stack; place is zeros when
// it cannot be read.
func read(from asm.BuiltinFunc, place, size int32) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.RFP), asm.Add.Imm(asm.R1, place), asm.Mov.Imm(asm.R2, size), from.Call(),
	}
}

func load(dst asm.Register, arg int16) asm.Instruction {
	return asm.LoadMem(dst, asm.RFP, argument+8*arg, asm.DWord)
}

// inMask goes to "no" unless the number in R9 is in the mask, else to "yes".
func inMask(numbers map[uint64]string) asm.Instructions {
	return asm.Instructions{
		asm.JGT.Imm(asm.R9, 63, "no"),
		asm.LoadImm(asm.R1, mask(numbers), asm.DWord), asm.RSh.Reg(asm.R1, asm.R9), asm.And.Imm(asm.R1, 1),
		asm.JEq.Imm(asm.R1, 0, "no"), asm.Ja.Label("yes"),
	}
}

// program is on the entry of each system call. R6 is the call's number, R7 where it
// names a path, R9 what it does, R8 the state.
func program(state, log *ebpf.Map, pid int, ns unix.Stat_t) (*ebpf.Program, error) {
	regs, err := registers()
	if err != nil {
		return nil, err
	}
	at := func(label string, ins asm.Instructions) asm.Instructions {
		ins[0] = ins[0].WithSymbol(label)
		return ins
	}
	ins := asm.Instructions{ // whose call it is
		asm.Mov.Reg(asm.R7, asm.R1), asm.LoadMem(asm.R6, asm.R1, 8, asm.DWord),
		asm.LoadImm(asm.R1, int64(ns.Dev), asm.DWord), asm.LoadImm(asm.R2, int64(ns.Ino), asm.DWord),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, pidTgid), asm.Mov.Imm(asm.R4, 8), asm.FnGetNsCurrentPidTgid.Call(),
		asm.JNE.Imm(asm.R0, 0, "no"),
		asm.LoadMem(asm.R1, asm.RFP, pidTgid+4, asm.Word), asm.JNE.Imm(asm.R1, int32(pid), "no"),
		asm.LoadMem(asm.R7, asm.R7, 0, asm.DWord),
	}
	for i, offset := range regs {
		ins = append(ins, asm.Mov.Reg(asm.R3, asm.R7), asm.Add.Imm(asm.R3, offset))
		ins = append(ins, read(asm.FnProbeReadKernel, argument+8*int32(i), 8)...)
	}
	ins = append(ins, asm.Mov.Imm(asm.R7, 0), asm.Mov.Imm(asm.R9, 0))
	for call, label := range map[int32]string{
		unix.SYS_BPF: "bpf", unix.SYS_SENDTO: "sendto", unix.SYS_OPENAT: "openat", unix.SYS_UNLINKAT: "unlinkat",
		unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat", unix.SYS_IOCTL: "ioctl",
	} {
		ins = append(ins, asm.JEq.Imm(asm.R6, call, label))
	}
	ins = append(ins, asm.Ja.Label("no"))
	ins = append(ins, at("bpf", append(asm.Instructions{load(asm.R9, 0)}, inMask(bpfCommands())...))...)
	ins = append(ins, at("sendto", sendto())...)
	ins = append(ins, at("openat", openat())...)
	ins = append(ins, at("unlinkat", asm.Instructions{load(asm.R7, 1), asm.Ja.Label("yes")})...)
	ins = append(ins, at("renameat", asm.Instructions{load(asm.R7, 3), asm.Ja.Label("yes")})...)
	ins = append(ins, at("ioctl", ethtool())...)
	ins = append(ins, at("yes", note(state, log))...)
	ins = append(ins, at("no", asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()})...)
	return ebpf.NewProgram(&ebpf.ProgramSpec{Name: "crashpoint", Type: ebpf.RawTracepoint, License: "GPL", Instructions: ins})
}

// sendto looks for netlink messages: the family of the address, then the type.
func sendto() asm.Instructions {
	const typeAt = 4
	ins := asm.Instructions{load(asm.R3, 4), asm.JEq.Imm(asm.R3, 0, "no")}
	ins = append(ins, read(asm.FnProbeReadUser, word, 2)...)
	ins = append(ins, asm.LoadMem(asm.R1, asm.RFP, word, asm.Half), asm.JNE.Imm(asm.R1, unix.AF_NETLINK, "no"),
		load(asm.R3, 1), asm.Add.Imm(asm.R3, typeAt))
	ins = append(ins, read(asm.FnProbeReadUser, word, 2)...)
	ins = append(ins, asm.LoadMem(asm.R9, asm.RFP, word, asm.Half))
	return append(ins, inMask(netlinkMessages())...)
}

// openat is for writing, and not of a device.
func openat() asm.Instructions {
	const dev = 'd' | 'e'<<8 | 'v'<<16 | '/'<<24
	ins := asm.Instructions{
		load(asm.R7, 1), load(asm.R1, 2), asm.And.Imm(asm.R1, unix.O_WRONLY|unix.O_RDWR), asm.JEq.Imm(asm.R1, 0, "no"),
		asm.Mov.Reg(asm.R3, asm.R7), asm.Add.Imm(asm.R3, 1),
	}
	ins = append(ins, read(asm.FnProbeReadUser, word, 4)...)
	return append(ins, asm.LoadMem(asm.R1, asm.RFP, word, asm.Word), asm.JEq.Imm(asm.R1, dev, "no"), asm.Ja.Label("yes"))
}

// ethtool looks into struct ifreq: a name and a pointer to what is asked.
func ethtool() asm.Instructions {
	ins := asm.Instructions{load(asm.R1, 1), asm.JNE.Imm(asm.R1, unix.SIOCETHTOOL, "no"), load(asm.R3, 2), asm.Add.Imm(asm.R3, unix.IFNAMSIZ)}
	ins = append(ins, read(asm.FnProbeReadUser, word, 8)...)
	ins = append(ins, asm.LoadMem(asm.R3, asm.RFP, word, asm.DWord))
	ins = append(ins, read(asm.FnProbeReadUser, word, 4)...)
	return append(ins, asm.LoadMem(asm.R1, asm.RFP, word, asm.Word), asm.JNE.Imm(asm.R1, unix.ETHTOOL_SFEATURES, "no"), asm.Ja.Label("yes"))
}

// note counts the change and writes it down; at the n-th the process is killed. Two
// threads that make one at the very same time count as one.
func note(state, log *ebpf.Map) asm.Instructions {
	lookup := func(m *ebpf.Map) asm.Instructions {
		return asm.Instructions{
			asm.LoadMapPtr(asm.R1, m.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, key), asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "no"),
		}
	}
	ins := asm.Instructions{asm.StoreImm(asm.RFP, key, 0, asm.Word)}
	ins = append(ins, lookup(state)...)
	ins = append(ins, asm.Mov.Reg(asm.R8, asm.R0), asm.LoadMem(asm.R1, asm.R8, stateCount, asm.DWord),
		asm.Mov.Reg(asm.R2, asm.R1), asm.Add.Imm(asm.R2, 1), asm.StoreMem(asm.R8, stateCount, asm.R2, asm.DWord),
		asm.StoreMem(asm.RFP, key, asm.R1, asm.Word), asm.StoreMem(asm.RFP, word, asm.R1, asm.DWord))
	ins = append(ins, lookup(log)...)
	return append(ins,
		asm.StoreMem(asm.R0, 0, asm.R6, asm.DWord), asm.StoreMem(asm.R0, 8, asm.R9, asm.DWord),
		asm.JEq.Imm(asm.R7, 0, "kill"),
		asm.Mov.Reg(asm.R1, asm.R0), asm.Add.Imm(asm.R1, 16), asm.Mov.Imm(asm.R2, 48), asm.Mov.Reg(asm.R3, asm.R7), asm.FnProbeReadUserStr.Call(),
		asm.LoadMem(asm.R1, asm.RFP, word, asm.DWord).WithSymbol("kill"), asm.Add.Imm(asm.R1, 1),
		asm.LoadMem(asm.R2, asm.R8, stateNth, asm.DWord), asm.JNE.Reg(asm.R1, asm.R2, "no"),
		asm.Mov.Imm(asm.R1, int32(unix.SIGKILL)), asm.FnSendSignal.Call(), asm.Ja.Label("no"),
	)
}
