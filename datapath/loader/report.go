// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// ProgramsAt are the programs at a device's TCX hooks, in the order in which they
// run, such as "tcx ingress: from_pod (id 12)". A kernel without TCX has none.
func ProgramsAt(ifindex int) []string {
	var out []string
	for _, hook := range []struct {
		name   string
		attach ebpf.AttachType
	}{{"ingress", ebpf.AttachTCXIngress}, {"egress", ebpf.AttachTCXEgress}} {
		r, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: hook.attach})
		if err != nil {
			continue
		}
		for _, p := range r.Programs {
			out = append(out, fmt.Sprintf("tcx %s: %s (id %d)", hook.name, programName(p.ID), p.ID))
		}
	}
	return out
}

func programName(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return "?"
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return "?"
	}
	return info.Name
}
