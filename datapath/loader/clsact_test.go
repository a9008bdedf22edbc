// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/datapath/loader"
)

// On a kernel without TCX the same programs are clsact filters: they carry
// traffic, outlive the agent, and a later agent may change to links and back
// without an open connection noticing.
func TestClsactFallback(t *testing.T) {
	w := newWorldWith(t, loader.AttachClsact)
	if mode := w.agents[0].d.AttachMode(); mode != loader.AttachClsact {
		t.Fatalf("attached by %s", mode)
	}
	if links, err := w.agents[0].d.Attachments(); err != nil || len(links) != 0 {
		t.Fatalf("clsact made links: %v, %v", links, err)
	}
	serve(t, w.pods[1], 8080)
	ping(t, w.pods[0], ips(1))
	ping(t, w.nodes[0].ns, ips(1))
	c := dial(t, w.pods[0], ips(1), 8080)
	for _, attach := range []string{loader.AttachClsact, loader.AttachTCX, loader.AttachClsact} {
		w.agents[0].stop(t)
		if err := echo(c, "no agent", 5*time.Second); err != nil {
			t.Fatal(err)
		}
		w.agents[0] = startAgentWith(t, attach, w.nodes[0], w.tables(0), w.eps[0].Device)
		w.agents[0].wait(t)
		if mode := w.agents[0].d.AttachMode(); mode != attach {
			t.Errorf("attached by %s, want %s", mode, attach)
		}
		if err := echo(c, attach, 5*time.Second); err != nil {
			t.Fatal(err)
		}
		links, err := w.agents[0].d.Attachments()
		if err != nil || (len(links) == 0) != (attach == loader.AttachClsact) {
			t.Errorf("%s has links %v, %v", attach, links, err)
		}
	}
}
