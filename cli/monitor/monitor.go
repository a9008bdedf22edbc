// SPDX-License-Identifier: Apache-2.0

// Package monitor is `hawser monitor`: events of the datapath as they happen.
package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

// types are the events that the datapath sends.
var types = []string{"drop", "verdict", "trace"}

// New returns the command.
func New(s *session.Session) *cobra.Command {
	var wanted []string
	var forHowLong time.Duration
	var count int
	cmd := &cobra.Command{
		Use:   "monitor",
		Short: "Watch drops, new flows and sampled packets as they happen",
		Long: "Watch drops as they happen, on all nodes of all clusters of the\n" +
			"context (--cluster and --node narrow it). A drop tells its reason, both sides with\n" +
			"their labels, the rule that decided, the node and the program. A verdict is a new\n" +
			"flow that was allowed, or a packet that audit mode let pass although policy denies\n" +
			"it; a trace is one of 16 packets that pass. New flows and traces are told only\n" +
			"while somebody asks for them. No endpoint has more than 100 events of a kind a second.\n" +
			"An agent that restarts is dialled again, and both are told on standard error; when none\n" +
			"has answered for as long as --timeout says, the exit code is 3.",
		Example: "  hawser monitor --type drop\n  hawser monitor --type verdict,trace --count 20",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, t := range wanted {
				if !slices.Contains(types, t) {
					return session.Usage("--type %s: must be %s", t, strings.Join(types, ", "))
				}
			}
			if count < 0 || forHowLong < 0 || len(wanted) == 0 {
				return session.Usage("--count and --for may not be negative, and --type not empty")
			}
			ctx := cmd.Context()
			if forHowLong == 0 && cmd.Flags().Changed("timeout") {
				forHowLong = s.Timeout // who says so means the whole of it
			}
			if forHowLong > 0 {
				// No deadline: an agent, told it, would end its stream before we do.
				var cancel context.CancelFunc
				ctx, cancel = context.WithCancel(ctx)
				defer cancel()
				defer time.AfterFunc(forHowLong, cancel).Stop()
			}
			return run(ctx, cmd.OutOrStdout(), s, wanted, count)
		},
	}
	cmd.Flags().StringSliceVarP(&wanted, "type", "t", []string{"drop"}, "which: "+strings.Join(types, ", "))
	cmd.Flags().DurationVar(&forHowLong, "for", 0, "stop after this time (default: --timeout if that is given, else never)")
	cmd.Flags().IntVarP(&count, "count", "c", 0, "stop after so many events (default: never)")
	_ = cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions(types, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// show prints one event: a line for people, a JSON object a line, or a YAML
// document.
func show(w io.Writer, f printer.Format, e *hawserv1.Event) error {
	switch f {
	case printer.JSON:
		return json.NewEncoder(w).Encode(printer.Value(e))
	case printer.YAML:
		if _, err := fmt.Fprintln(w, "---"); err != nil {
			return err
		}
		return printer.Encode(w, f, printer.Value(e))
	}
	_, err := fmt.Fprintln(w, Line(e))
	return err
}

// Line is an event as one line.
func Line(e *hawserv1.Event) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %-7s", time.Unix(0, e.GetTime()).Format("15:04:05.000"), e.GetType())
	if e.GetReason() != "" {
		fmt.Fprintf(&b, " %s  ", e.GetReason())
	}
	fmt.Fprintf(&b, " %s → %s/%s", peer(e.GetSource()), peer(e.GetDestination()), e.GetProtocol())
	for _, part := range []string{e.GetSummary(), e.GetDetail()} {
		if part != "" {
			fmt.Fprintf(&b, "  %s", part)
		}
	}
	if e.GetOrigin() != "" {
		fmt.Fprintf(&b, "  by %s", e.GetOrigin())
	}
	fmt.Fprintf(&b, "  %s %s %s", e.GetNode(), e.GetProgram(), e.GetDirection())
	if e.GetSuppressed() > 0 {
		fmt.Fprintf(&b, "  (%d more like it not shown)", e.GetSuppressed())
	}
	return b.String()
}

// peer is one side: what it is, its labels, its port.
func peer(p *hawserv1.EventPeer) string {
	name := p.GetIp()
	if strings.Contains(name, ":") && p.GetPort() != 0 {
		name = "[" + name + "]"
	}
	if p.GetWorkload() != "" {
		_, short, _ := strings.Cut(p.GetWorkload(), "/")
		name = p.GetCluster() + "/" + short
	}
	var labels []string
	for _, l := range p.GetLabels() {
		if !strings.HasPrefix(l, "mesh:") {
			labels = append(labels, l)
		}
	}
	if len(labels) > 0 {
		name += " (" + printer.Labels(labels) + ")"
	} else if p.GetIdentity() != 0 {
		name += fmt.Sprintf(" (identity %d)", p.GetIdentity())
	}
	if p.GetPort() != 0 {
		name += fmt.Sprintf(":%d", p.GetPort())
	}
	return name
}
