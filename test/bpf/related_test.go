// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// ICMP errors of both ends pass while policy lets their flow pass, whoever judges it:
// not after a rule is taken away, and at once when it is there again.
func TestErrorsPassAsTheirFlow(t *testing.T) {
	h := newHarness(t)
	h.services()
	sport := uint16(3000)
	for _, f := range families() {
		for _, w := range ways(f) {
			if w.idle {
				continue
			}
			for _, proto := range []uint8{tcp, udp, f.icmp} {
				if w.service && proto == f.icmp {
					continue
				}
				sport++
				t.Run(fmt.Sprintf("%s%s/%d", f.prefix, w.name, proto), func(t *testing.T) {
					h.t = t
					h.errorsPassAsTheirFlow(f, w, proto, sport)
				})
			}
		}
	}
	h.t = t
	for _, f := range families() {
		t.Run(f.prefix+"forwarded by the host", func(t *testing.T) {
			h.t = t
			h.judge(f.a, datapath.RuleSet{})
			if r := pod(f.a)(h, datagram(f.a.ip, f.outside, 900, 53, 10)); r.act != actOK {
				t.Fatalf("verdict %d", r.act)
			}
			about := failure(t, f.outside, f.a.ip, datagram(f.a.ip, f.outside, 900, 53, 10))
			h.passed(hostStack(h, about))
			h.judge(f.a, datapath.RuleSet{Egress: true})
			h.dropped(hostStack(h, about), maps.DropPolicyDenied)
			h.judge(f.a, datapath.RuleSet{Ingress: true})
			h.passed(hostStack(h, about))
		})
	}
	h.t = t
}

func (h *harness) errorsPassAsTheirFlow(f family, w way, proto uint8, sport uint16) {
	h.t.Helper()
	// What the responder gets, and what the originator gets as its answer.
	asked, answered := w, way{src: w.dst, dst: w.src, dport: sport}
	server := w.dst
	if w.service {
		asked.dport, server = 8080, f.b.ip
		if w.dport == 81 {
			server = f.r.ip
		}
		asked.dst = server
	}
	request := question(asked, proto, sport)
	answer := question(answered, proto, w.dport)
	if proto == f.icmp {
		answer = echoReplyOf(w.dst, w.src, sport)
	}
	errors := map[string]func() result{
		"of the responder": func() result {
			return enters(f, server)(h, failure(h.t, server, w.src, request))
		},
		"of the originator": func() result {
			return w.enter(h, failure(h.t, w.src, w.dst, answer))
		},
	}
	if w.service && w.src == f.self {
		delete(errors, "of the originator") // its own stack knows the service's backends
	}
	port := w.port
	if proto == f.icmp {
		port = f.echo
	}
	allow := datapath.RuleSet{Ingress: true, Egress: true, Entries: entries{{Direction: w.dir, Identity: w.peer, Protocol: proto, Port: port}: {}}}
	pass := func(why string) {
		h.t.Helper()
		for name, send := range errors {
			if r := send(); r.act == actShot {
				h.t.Errorf("%s: an error %s is dropped: %+v", why, name, h.events())
			}
		}
	}
	h.judge(w.judges, allow)
	h.events()
	if r := w.enter(h, question(w, proto, sport)); r.act == actShot {
		h.t.Fatalf("the flow is dropped: %+v", h.events())
	}
	pass("allowed")
	always := w.judges.name == "" || w.peer == identity.Host && w.dir == datapath.Ingress
	for name, closed := range map[string]datapath.RuleSet{
		"without its rule": {Ingress: true, Egress: true},
		"denied":           {Entries: entries{{Direction: w.dir, Identity: w.peer}: {Deny: true}}},
		"another port":     {Ingress: true, Egress: true, Entries: entries{{Direction: w.dir, Identity: w.peer, Protocol: proto, Port: port + 1}: {}}},
	} {
		h.judge(w.judges, closed)
		if always {
			pass(name)
			continue
		}
		for name, send := range errors {
			if server == f.self && name == "of the responder" {
				continue // the host reaches its own pods
			}
			if e := h.dropped(send(), maps.DropPolicyDenied); e.Direction != w.dir || e.Endpoint != h.eps[w.judges.name].ID {
				h.t.Errorf("event %+v", e)
			}
		}
		closed.Audit = true
		h.judge(w.judges, closed)
		pass(name + ", audited")
		h.events()
		h.judge(w.judges, allow)
		pass("allowed again")
	}
	h.forgetFlows()
}
