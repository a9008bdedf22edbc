// SPDX-License-Identifier: Apache-2.0

// Package doctor is `hawser mesh doctor`: it asks every program of the context
// that it can reach and says what is wrong, why, and what to do next.
//
// Start with Examine, which judges a Snapshot and asks nobody, and Ways, which
// judges the tunnels between all nodes by what their probes found; collect.go asks.
// It sends no packets of its own beside that: nodes and API servers do.
package doctor

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

// Severity is how bad a finding is.
type Severity string

// Severities.
const (
	OK      Severity = "ok"
	Warning Severity = "warning"
	Problem Severity = "problem"
)

// Finding is the outcome of one check on one object.
type Finding struct {
	Severity Severity `json:"severity"`
	Cluster  string   `json:"cluster"`
	Check    string   `json:"check"`
	Object   string   `json:"object"`
	Cause    string   `json:"cause"`
	Next     string   `json:"next,omitempty"`
}

// Port is a line of the port table.
type Port struct {
	Cluster string `json:"cluster"`
	Port    string `json:"port"`
	From    string `json:"from"`
	To      string `json:"to"`
}

// Report is all that doctor says.
type Report struct {
	Findings []Finding `json:"findings"`
	Ports    []Port    `json:"ports"`
}

// New returns the command.
func New(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Examine API servers, agents and peers, and say what to do about what is wrong",
		Long: "Examine API servers, agents and peers of the context, and say what is wrong, why,\n" +
			"and what to do next. The exit code is 1 when there is a problem, 3 when nobody\n" +
			"could be asked; warnings alone are 0. It also prints which ports must be open.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := Run(cmd.Context(), s)
			if err != nil {
				return err
			}
			if err := show(cmd.OutOrStdout(), s, r); err != nil {
				return err
			}
			n := count(r.Findings, Problem)
			switch {
			case n == len(r.Findings):
				return &session.Error{Code: session.CouldNotAsk, Err: fmt.Errorf("nobody could be asked")}
			case n > 0:
				return session.Answer("%d of %d checks found a problem", n, len(r.Findings))
			}
			return nil
		},
	}
}

// Run asks all programs of the session's context and examines what they say.
func Run(ctx context.Context, s *session.Session) (Report, error) {
	snapshots, err := collect(ctx, s)
	if err != nil {
		return Report{}, err
	}
	r := Report{Findings: []Finding{}, Ports: []Port{}}
	for _, c := range snapshots {
		r.Findings = append(r.Findings, Examine(c)...)
		r.Ports = append(r.Ports, ports(c)...)
	}
	r.Findings = append(r.Findings, Ways(snapshots)...)
	return r, nil
}

func count(fs []Finding, s Severity) int {
	n := 0
	for _, f := range fs {
		if f.Severity == s {
			n++
		}
	}
	return n
}

// show prints problems first, then warnings; what is well is one line a check.
func show(w io.Writer, s *session.Session, r Report) error {
	if s.Output != printer.Table {
		return printer.Encode(w, s.Output, r)
	}
	rank := map[Severity]int{Problem: 0, Warning: 1, OK: 2}
	fs := slices.Clone(r.Findings)
	slices.SortStableFunc(fs, func(a, b Finding) int { return cmp.Compare(rank[a.Severity], rank[b.Severity]) })
	mark := map[Severity]string{Problem: "✗", Warning: "!", OK: "✓"}
	for _, f := range fs {
		if s.Quiet && f.Severity == OK {
			continue
		}
		fmt.Fprintf(w, "%s %s  %s: %s\n", mark[f.Severity], f.Check, f.Object, f.Cause)
		if f.Next != "" {
			fmt.Fprintf(w, "    next: %s\n", f.Next)
		}
	}
	if s.Quiet {
		return nil
	}
	fmt.Fprintf(w, "\n%d checks: %d problems, %d warnings\n\nThese must get through:\n", len(fs), count(fs, Problem), count(fs, Warning))
	return printer.Rows(w, printer.Table, r.Ports, printer.Columns[Port]{
		{Header: "CLUSTER", Cell: func(p Port) string { return p.Cluster }},
		{Header: "PORT", Cell: func(p Port) string { return p.Port }},
		{Header: "FROM", Cell: func(p Port) string { return p.From }},
		{Header: "TO", Cell: func(p Port) string { return p.To }},
	}, "nobody could be asked")
}

// ports is what a firewall must let through for a cluster.
func ports(c Snapshot) []Port {
	st := c.Status
	if st == nil {
		return nil
	}
	tunnel := map[string]bool{}
	for _, n := range c.Nodes {
		tunnel[fmt.Sprintf("%d/udp", n.Status.GetTunnelPort())] = true
	}
	out := []Port{
		{c.Cluster, portOf(st.GetFederationEndpoints()) + "/tcp", "API servers of peers (one direction is enough)", strings.Join(st.GetFederationEndpoints(), ", ")},
		{c.Cluster, portOf([]string{st.GetEtcdEndpoint()}) + "/tcp", "nodes of " + c.Cluster, st.GetEtcdEndpoint()},
		{c.Cluster, "4244/tcp", "nodes and administrators of " + c.Cluster, "its API server (--listen-api)"},
	}
	out = append(out, Port{c.Cluster, "7946/tcp+udp", "nodes and API servers of " + c.Cluster, "nodes and API servers of " + c.Cluster},
		Port{c.Cluster, "53/tcp+udp", "pods of " + c.Cluster, "their nodes (--dns-listen)"})
	for p := range tunnel {
		out = append(out, Port{c.Cluster, p, "nodes of every cluster", "nodes of " + c.Cluster})
	}
	return out
}

func portOf(endpoints []string) string {
	if len(endpoints) == 0 {
		return "–"
	}
	return endpoints[0][strings.LastIndexByte(endpoints[0], ':')+1:]
}
