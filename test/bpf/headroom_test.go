// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"

	"github.com/cilium/ebpf"
)

// verifierLimit is what the kernel's verifier walks before it gives up
// (BPF_COMPLEXITY_LIMIT_INSNS).
const verifierLimit = 1_000_000

// Every program stays well below the limit: other kernels walk the same program
// by other ways.
func TestVerifierHeadroom(t *testing.T) {
	h := newHarness(t)
	for name, prog := range h.programs() {
		info, err := prog.Info()
		if err != nil {
			t.Fatal(err)
		}
		walked, ok := info.VerifiedInstructions()
		if !ok {
			t.Skip("this kernel does not tell how much the verifier walked (Linux 5.16)")
		}
		t.Logf("%s: %d of %d instructions", name, walked, verifierLimit)
		if walked > verifierLimit/2 {
			t.Errorf("%s: the verifier walks %d instructions, more than half of its limit", name, walked)
		}
	}
}

// programs are those that see packets.
func (h *harness) programs() map[string]*ebpf.Program {
	progs := h.d.Programs()
	out := map[string]*ebpf.Program{
		"from_pod": progs.FromPod, "from_overlay": progs.FromOverlay, "from_host": progs.FromHost,
		"from_pod6": progs.FromPod6, "from_overlay6": progs.FromOverlay6, "from_host6": progs.FromHost6,
		"from_stack": progs.FromStack,
	}
	if h.device != nil {
		out["from_tunnel"], out["from_tunnel6"] = progs.FromTunnel, progs.FromTunnel6
	}
	return out
}
