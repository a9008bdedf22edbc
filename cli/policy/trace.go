// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/trace"
)

// verdictRow is a verdict for people and programs.
type verdictRow struct {
	Direction string   `json:"direction"`
	At        string   `json:"at"`
	Verdict   string   `json:"verdict"` // allowed, denied, audited (denied, and passes), not asked
	Reason    string   `json:"reason"`
	Hints     []string `json:"hints,omitempty"`
	// Family is set when the answer is another for the other family.
	Family string `json:"family,omitempty"`
}

func (r verdictRow) equal(o verdictRow) bool {
	return r.Direction == o.Direction && r.At == o.At && r.Verdict == o.Verdict && r.Reason == o.Reason && slices.Equal(r.Hints, o.Hints)
}

const (
	verdictAllowed  = "allowed"
	verdictDenied   = "denied"
	verdictAudited  = "audited"
	verdictNotAsked = "not asked"
)

func newTrace(s *session.Session) *cobra.Command {
	var src, dst, dport, expect string
	cmd := &cobra.Command{
		Use:   "trace --src FROM --dst TO --dport PORT",
		Short: "Say whether one end may reach another, and which rule decides",
		Long: "Say whether one end may open a connection to another, at each end, and which rule\n" +
			"decides. An end is a pod ([cluster/]namespace/name or cluster/name), an address, an\n" +
			"identity's number, labels of workloads (app=web,mesh:namespace=demo) or a reserved name\n" +
			"(world, host, remote-node). The other end's cluster is asked what its policies say, if it grants\n" +
			"that; it names the rule and nothing else. What could not be asked is printed as such.\n" +
			"A pod with addresses of both families is asked about for both, and answered once when the\n" +
			"answers are the same; give addresses to ask for one. Of a service, name a backend: policy\n" +
			"is about those. The exit code is 1 when it is denied, or, with --expect, when the answer is another.",
		Example: "  hawser policy trace --src demo/client --dst west/demo/echo --dport 8080/tcp --expect allow",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			proto, number, err := port(dport)
			if err != nil {
				return session.Usage("--dport: %v", err)
			}
			if expect != "" && expect != "allow" && expect != "deny" {
				return session.Usage("--expect %q: want allow or deny", expect)
			}
			return inTime(cmd.Context(), s, func(ctx context.Context) error {
				return tracePolicy(ctx, cmd.OutOrStdout(), s, question{src, dst, expect, proto, number})
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&src, "src", "", "who opens the connection")
	f.StringVar(&dst, "dst", "", "to whom")
	f.StringVar(&dport, "dport", "", "to which port: 80/tcp, 53/udp, 38412/sctp; icmp or icmpv6 (a ping), or their type: 8/icmp, 128/icmpv6")
	f.StringVar(&expect, "expect", "", "the answer that is right: allow or deny; the exit code is 1 for any other")
	for _, required := range []string{"src", "dst", "dport"} {
		_ = cmd.MarkFlagRequired(required)
	}
	return cmd
}

// question is what a trace is asked.
type question struct {
	src, dst, expect string
	proto            uint8
	number           uint16
}

func tracePolicy(ctx context.Context, w io.Writer, s *session.Session, q question) error {
	k, err := learn(ctx, s, true)
	if err != nil {
		return err
	}
	from, err := k.end(q.src)
	if err != nil {
		return fmt.Errorf("--src: %w", err)
	}
	to, err := k.end(q.dst)
	if err != nil {
		return fmt.Errorf("--dst: %w", err)
	}
	for _, a := range append(slices.Clone(from.addrs), to.addrs...) {
		if problem := k.notInKernel(a); problem != "" {
			s.Warn("%s", problem)
		}
	}
	ps, err := packets(from, to, q.proto)
	if err != nil {
		return err
	}
	if err := k.learnTunnels(ctx, s, q.proto); err != nil {
		return err
	}
	var answers [][]verdictRow
	for _, p := range ps {
		rows := k.inKernel(p, q.proto, q.number)
		if rows == nil {
			rows = k.nobodys(p)
		}
		if rows == nil {
			if rows, err = explain(ctx, s, k, p, q.proto, q.number); err != nil {
				return err
			}
			k.unmasked(p, q.proto, &rows[0])
		}
		answers = append(answers, rows)
	}
	return showVerdicts(w, s.Output, merge(ps, answers), q.expect)
}

// explain asks the API server, which asks the other cluster's for an end there.
func explain(ctx context.Context, s *session.Session, k *knowledge, p packet, proto uint8, number uint16) ([]verdictRow, error) {
	client, conn, err := s.Mesh()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := s.Deadline(ctx)
	defer cancel()
	var rows []verdictRow
	for _, d := range []struct {
		name       string
		self, peer trace.End
	}{{"egress", p.from, p.to}, {"ingress", p.to, p.from}} {
		cluster, _ := d.self.Labels.Get(labels.Mesh, labels.ClusterKey)
		peer, note := k.seenFrom(d.self, d.peer)
		r, err := client.ExplainPolicy(ctx, &hawserv1.ExplainPolicyRequest{
			Cluster: cluster, Direction: d.name, Self: endMessage(d.self), Peer: endMessage(peer),
			Protocol: uint32(proto), Port: uint32(number),
		})
		if err != nil {
			return nil, err
		}
		row := verdictRow{Direction: d.name, At: d.self.Name, Verdict: verdictAllowed, Reason: r.GetReason(), Hints: r.GetHints()}
		if note != "" {
			row.Hints = append(row.Hints, note)
		}
		switch {
		case !r.GetAnswered():
			row.Verdict = verdictNotAsked
		case !r.GetAllowed() && (r.GetAudited() || k.audited[d.self.Addr]):
			row.Verdict = verdictAudited
		case !r.GetAllowed():
			row.Verdict = verdictDenied
			if cluster != "" && cluster != k.cluster {
				row.Hints = append(row.Hints, fmt.Sprintf("whether this one endpoint is told to audit (hawser endpoint audit), so that it passes, is known in cluster %s only", cluster))
			}
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// merge joins the answers about packets of different families. One that is the
// same for all is there once, without family.
func merge(ps []packet, answers [][]verdictRow) []verdictRow {
	var out []verdictRow
	for i, first := range answers[0] {
		if !slices.ContainsFunc(answers, func(rows []verdictRow) bool { return !rows[i].equal(first) }) {
			out = append(out, first)
			continue
		}
		for k, rows := range answers {
			rows[i].Family = ps[k].family
			out = append(out, rows[i])
		}
	}
	return out
}

func endMessage(e trace.End) *hawserv1.ExplainPolicyEnd {
	out := &hawserv1.ExplainPolicyEnd{Labels: e.Labels.Strings(), Reserved: uint32(e.Reserved)}
	if e.Addr.IsValid() {
		out.Address = e.Addr.String()
	}
	return out
}

func showVerdicts(w io.Writer, f printer.Format, rows []verdictRow, expect string) error {
	denied, unknown := false, false
	for _, r := range rows {
		denied = denied || r.Verdict == verdictDenied
		unknown = unknown || r.Verdict == verdictNotAsked
	}
	if f != printer.Table {
		if err := printer.Encode(w, f, rows); err != nil {
			return err
		}
	} else {
		for _, r := range rows {
			at := r.At
			if r.Family != "" {
				at += " (" + r.Family + ")"
			}
			fmt.Fprintf(w, "%-7s at %-28s %-10s %s\n", r.Direction, at, r.Verdict, r.Reason)
			for _, h := range r.Hints {
				fmt.Fprintf(w, "  %s\n", h)
			}
		}
	}
	switch {
	case denied && expect != "deny":
		return session.Answer("denied")
	case expect == "allow" && unknown:
		return session.Answer("not known: an end could not be asked")
	case expect == "deny" && !denied && unknown:
		return session.Answer("not known to be denied: an end could not be asked")
	case expect == "deny" && !denied:
		return session.Answer("allowed")
	}
	return nil
}
