// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/doctor"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

func newStatus(s *session.Session) *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show each peer: connection, lag, keys, refused records",
		Long: "Show each peer: connection, lag, keys, refused records.\n" +
			"Exit code 1 when a peer is not ready; --wait blocks until all are.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, conn, err := s.Mesh()
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			ctx, cancel := s.Deadline(cmd.Context())
			defer cancel()
			r, err := poll(ctx, client, wait)
			if err != nil {
				return err
			}
			if err := show(cmd.OutOrStdout(), s.Output, r); err != nil {
				return err
			}
			if waiting := notReady(r); len(waiting) > 0 {
				return session.Answer("not ready: %s", strings.Join(waiting, ", "))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until every peer is ready (for at most --timeout)")
	return cmd
}

// poll asks once, or until all peers are ready or the context ends; then it
// returns the last answer.
func poll(ctx context.Context, client hawserv1.MeshClient, wait bool) (*hawserv1.MeshStatusResponse, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var last *hawserv1.MeshStatusResponse
	for {
		r, err := client.MeshStatus(ctx, &hawserv1.MeshStatusRequest{})
		if err != nil {
			if last != nil {
				return last, nil
			}
			return nil, err
		}
		if !wait || len(r.GetPeers()) > 0 && len(notReady(r)) == 0 {
			return r, nil
		}
		last = r
		select {
		case <-ctx.Done():
			return last, nil
		case <-tick.C:
		}
	}
}

func notReady(r *hawserv1.MeshStatusResponse) []string {
	var out []string
	for _, p := range r.GetPeers() {
		if p.GetState() != "connected" || p.GetData() != "fresh" || len(p.GetSyncedKinds()) == 0 {
			out = append(out, p.GetName())
		}
	}
	return out
}

func show(w io.Writer, f printer.Format, r *hawserv1.MeshStatusResponse) error {
	if f != printer.Table {
		return printer.One(w, f, r, nil)
	}
	err := printer.List(w, f, r.GetPeers(), columns(), "No peers.  Connect another cluster:  hawser mesh invite")
	if err != nil {
		return err
	}
	for _, p := range r.GetPeers() {
		notes(w, p)
	}
	return nil
}

func columns() printer.Columns[*hawserv1.PeerStatus] {
	type peer = *hawserv1.PeerStatus
	return printer.Columns[peer]{
		{Header: "PEER", Cell: peer.GetName},
		{Header: "ID", Cell: func(p peer) string { return fmt.Sprint(p.GetClusterId()) }},
		{Header: "STATE", Cell: peer.GetState},
		{Header: "SINCE", Cell: func(p peer) string { return printer.Age(p.GetSince()) }},
		{Header: "DIALLED", Cell: func(p peer) string {
			if p.GetDialledBy() == "" {
				return ""
			}
			return "by " + p.GetDialledBy()
		}},
		{Header: "LAG NOW/P99", Cell: func(p peer) string {
			if p.GetState() != "connected" {
				return ""
			}
			return fmt.Sprintf("%s / %s", printer.Count(p.GetLagEvents()), milliseconds(p.GetLagP99Seconds()))
		}},
		{Header: "KEYS", Cell: func(p peer) string { return printer.Count(p.GetKeys()) }},
		{Header: "REFUSED", Cell: refused},
		{Header: "NODES", Cell: nodes},
		{Header: "DATA", Cell: peer.GetData},
		{Header: "LAST SYNC", Cell: peer.GetLastSync},
		{Header: "CERT", Cell: func(p peer) string {
			if p.GetCertificateExpiresAt() == 0 {
				return ""
			}
			return printer.Duration(time.Until(time.Unix(0, p.GetCertificateExpiresAt())))
		}},
	}
}

// nodes are those alive, as their cluster says, and those that we do not reach.
func nodes(p *hawserv1.PeerStatus) string {
	text := fmt.Sprintf("%d/%d alive", p.GetNodesAlive(), p.GetNodesTotal())
	if n := p.GetNodesUnreachable(); n > 0 {
		text += fmt.Sprintf(", %d unreach", n)
	}
	return text
}

func milliseconds(s float64) string {
	if s > 0 && s < 0.001 {
		return "<1 ms"
	}
	return fmt.Sprintf("%.0f ms", s*1000)
}

func refused(p *hawserv1.PeerStatus) string {
	var total uint64
	var reasons []string
	for reason, n := range p.GetRefused() {
		total += n
		reasons = append(reasons, reason)
	}
	if total == 0 {
		return "0"
	}
	slices.Sort(reasons)
	return fmt.Sprintf("%d (%s)", total, strings.Join(reasons, ", "))
}

// lost tells of a peer whose stream is not up.
func lost(w io.Writer, p *hawserv1.PeerStatus) {
	what := fmt.Sprintf("its data stays as it was at revision %d", p.GetPositionRevision())
	switch {
	case p.GetState() == "leaving":
		what = "what came from it is being removed"
	case p.GetKeys() == 0 && p.GetData() == "":
		what = "it was never heard, and nothing of it is here"
	case p.GetData() == "":
		what = fmt.Sprintf("when it was heard is not known; its %s keys stay as they are", printer.Count(p.GetKeys()))
	}
	fmt.Fprintf(w, "  %s: %s for %s; %s\n", p.GetName(), p.GetState(), printer.Age(p.GetSince()), what)
	if p.GetLastError() != "" {
		fmt.Fprintf(w, "  %s: last error: %s\n", p.GetName(), strings.ReplaceAll(p.GetLastError(), "\n", "; "))
	}
	if s := p.GetState(); s == "connecting" || s == "lost" {
		fmt.Fprintf(w, "  %s: next: %s\n", p.GetName(), doctor.Next(p))
	}
}

// notes explains what the table cannot.
func notes(w io.Writer, p *hawserv1.PeerStatus) {
	if p.GetState() != "connected" && p.GetState() != "unreadable" {
		lost(w, p)
	}
	if n := p.GetNodesUnreachable(); n > 0 {
		fmt.Fprintf(w, "  %s: no node that probes them reaches %d of its nodes; new connections go elsewhere (hawser node paths)\n", p.GetName(), n)
	}
	for _, f := range p.GetFindings() {
		fmt.Fprintf(w, "  %s: %s; %s\n", p.GetName(), f.GetProblem(), f.GetFix())
	}
	for _, r := range p.GetLastRefused() {
		fmt.Fprintf(w, "  %s: refused %s\n", p.GetName(), r)
	}
}
