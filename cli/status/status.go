// SPDX-License-Identifier: Apache-2.0

// Package status is `hawser status`: how a cluster and its nodes are.
package status

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

// New returns the command.
func New(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how the cluster and its nodes are",
		Long: "Show how the cluster and its nodes are: API server, etcd, peers, and for each node\n" +
			"its keyspace connection and how far the kernel follows the desired state.\n" +
			"Exit code 1 when something is wrong.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd, s) },
	}
}

// answers are what could be asked, and why the rest could not.
type answers struct {
	cluster    *hawserv1.ClusterStatusReport
	clusterErr error
	nodes      []*hawserv1.NodeStatusReport
	nodesErr   error
}

func run(cmd *cobra.Command, s *session.Session) error {
	var a answers
	a.cluster, a.clusterErr = askCluster(cmd.Context(), s)
	a.nodes, a.nodesErr = session.Gather(cmd.Context(), s, func(ctx context.Context, n session.NodeConn) ([]*hawserv1.NodeStatusReport, error) {
		r, err := n.Status(ctx, &hawserv1.StatusRequest{})
		if err != nil {
			return nil, err
		}
		return []*hawserv1.NodeStatusReport{r}, nil
	})
	if err := a.none(); err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	if s.Output != printer.Table {
		if err := encode(w, s.Output, a); err != nil {
			return err
		}
	} else if err := show(w, a); err != nil {
		return err
	}
	if n := a.problems(); n > 0 {
		return session.Answer("%d problem(s), shown above", n)
	}
	return nil
}

// notHere reports whether an error says that the context has no such program,
// which is no problem: a node's host need not run an API server, and an
// administrator's context of a remote one names no agents.
func notHere(err error) bool {
	return errors.Is(err, session.ErrNoAgents) || errors.Is(err, session.ErrNoAPIServer)
}

// none is why nobody could be asked; nil when somebody could.
func (a answers) none() error {
	switch {
	case a.clusterErr == nil || a.nodesErr == nil:
		return nil
	case notHere(a.nodesErr), a.clusterErr.Error() == a.nodesErr.Error(): // the latter is the context's
		return a.clusterErr
	case notHere(a.clusterErr):
		return a.nodesErr
	}
	return fmt.Errorf("%w\n%w", a.clusterErr, a.nodesErr)
}

func askCluster(ctx context.Context, s *session.Session) (*hawserv1.ClusterStatusReport, error) {
	client, conn, err := s.Mesh()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := s.Deadline(ctx)
	defer cancel()
	return client.ClusterStatus(ctx, &hawserv1.ClusterStatusRequest{})
}

// encode prints all for programs. clusterError and nodesError are there when
// something could not be asked that should answer; notAsked when it is elsewhere.
func encode(w io.Writer, f printer.Format, a answers) error {
	out := map[string]any{"cluster": nil}
	if a.cluster != nil {
		out["cluster"] = printer.Value(a.cluster)
	}
	list := make([]any, len(a.nodes))
	for i, n := range a.nodes {
		list[i] = printer.Value(n)
	}
	out["nodes"] = list
	for key, err := range map[string]error{"clusterError": a.clusterErr, "nodesError": a.nodesErr} {
		switch {
		case err == nil:
		case notHere(err):
			out["notAsked"] = session.Message(err)
		default:
			out[key] = session.Message(err)
		}
	}
	return printer.Encode(w, f, out)
}

func (a answers) problems() int {
	n := len(a.cluster.GetProblems())
	for _, err := range []error{a.clusterErr, a.nodesErr} {
		if err != nil && !notHere(err) {
			n++
		}
	}
	for _, node := range a.nodes {
		n += len(node.GetProblems())
	}
	return n
}

func show(w io.Writer, a answers) error {
	if a.clusterErr != nil {
		fmt.Fprintf(w, "API server:  %s\n", because(a.clusterErr))
	} else if err := showCluster(w, a.cluster); err != nil {
		return err
	}
	if a.nodesErr != nil {
		fmt.Fprintf(w, "Nodes:       %s\n", because(a.nodesErr))
		return nil
	}
	type row = *hawserv1.NodeStatusReport
	fmt.Fprintln(w)
	if err := printer.List(w, printer.Table, a.nodes, printer.Columns[row]{
		{Header: "NODE", Cell: row.GetNode},
		{Header: "KEYSPACE", Cell: keyspace},
		{Header: "REVISION", Cell: func(n row) string { return printer.Count(n.GetKeyspace().GetRevision()) }},
		{Header: "KERNEL", Cell: kernel},
		{Header: "ENDPOINTS", Cell: func(n row) string { return fmt.Sprint(n.GetEndpoints()) }},
		{Header: "ADDRESSES", Cell: addresses},
		{Header: "UNDERLAY", Cell: func(n row) string { return n.GetUnderlayAddress() + " " + n.GetUnderlayDevice() }},
		{Header: "MASQUERADE", Cell: func(n row) string { return strings.Join(n.GetMasqueradeAddresses(), ",") }},
		{Header: "TUNNEL", Cell: tunnel},
		{Header: "ATTACH", Cell: row.GetAttachMode},
		{Header: "UP", Cell: func(n row) string { return printer.Age(n.GetStartedAt()) }},
		{Header: "VERSION", Cell: row.GetVersion},
	}, "No nodes."); err != nil {
		return err
	}
	for _, n := range a.nodes {
		showProblems(w, n.GetNode(), n.GetProblems())
	}
	return nil
}

// tunnel says what the tunnel is and who makes its headers; agents before that was
// told make them in eBPF.
func tunnel(n *hawserv1.NodeStatusReport) string {
	return fmt.Sprintf("%s/%d %s", n.GetTunnelProtocol(), n.GetTunnelPort(), cmp.Or(n.GetTunnelDatapath(), "ebpf"))
}

// because is why somebody was not asked, with a mark if that is a problem.
func because(err error) string {
	if notHere(err) {
		return "not asked: " + session.Message(err)
	}
	return "✗ " + session.Message(err)
}

func showCluster(w io.Writer, c *hawserv1.ClusterStatusReport) error {
	if err := printer.Fields(w,
		"Cluster", fmt.Sprintf("%s (id %d), identities %d to %d", c.GetCluster(), c.GetClusterId(), c.GetIdentityMin(), c.GetIdentityMax()),
		"API server", fmt.Sprintf("✓ up %s, version %s", printer.Age(c.GetStartedAt()), c.GetVersion()),
		"etcd", etcd(c),
		"Snapshot", snapshot(c),
		"Federation", strings.Join(c.GetFederationEndpoints(), ", "),
		"Peers", fmt.Sprintf("%d of %d connected", c.GetPeersConnected(), c.GetPeers()),
		"Addresses", fmt.Sprintf("pods %s, services %s", strings.Join(c.GetPodCidrs(), ","), strings.Join(c.GetServiceCidrs(), ",")),
		"Pod ranges", ranges(c.GetPodRanges()),
	); err != nil {
		return err
	}
	showProblems(w, c.GetCluster(), c.GetProblems())
	return nil
}

// ranges says how much of each pool nodes have.
func ranges(rs []*hawserv1.PodRange) string {
	var out []string
	for _, r := range rs {
		out = append(out, fmt.Sprintf("%s: %d nodes, %s of /%d free", r.GetPool(), r.GetNodes(), count(r.GetFree()), r.GetNodeBits()))
	}
	return strings.Join(out, "; ")
}

// addresses says how much of its pools a node has in use.
func addresses(n *hawserv1.NodeStatusReport) string {
	var out []string
	for _, p := range n.GetPools() {
		text := fmt.Sprintf("%d used, %s free", p.GetUsed(), count(p.GetFree()))
		if p.GetFree() == 0 {
			text = fmt.Sprintf("full (%d)", p.GetUsed())
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

// count is a number, in words when it is too large to be one.
func count(n uint64) string {
	const many = 1 << 40
	if n > many {
		return "plenty"
	}
	return fmt.Sprint(n)
}

// etcd says where the keys are, how many, and how full it is.
func etcd(c *hawserv1.ClusterStatusReport) string {
	mark, members := "✓", ""
	if n := len(c.GetEtcdMembers()); n > 1 {
		up, leader := 0, ""
		for _, m := range c.GetEtcdMembers() {
			if m.GetProblem() == "" {
				up++
			}
			if m.GetLeader() {
				leader = ", leader " + m.GetName()
			}
		}
		members = fmt.Sprintf(", %d of %d members%s", up, n, leader)
		if up < n {
			mark = "✗"
		}
	}
	full := ""
	if q := c.GetQuotaBytes(); q > 0 {
		full = fmt.Sprintf(" of %s", printer.Bytes(q))
	}
	mode := c.GetEtcdMode()
	if mode == "embedded" {
		mode = ""
	} else if mode != "" {
		mode += " "
	}
	return fmt.Sprintf("%s %s%s, revision %s, %s keys, %s%s%s", mark, mode, c.GetEtcdEndpoint(), printer.Count(c.GetRevision()),
		printer.Count(c.GetKeys()), printer.Bytes(c.GetDatabaseBytes()), full, members)
}

func snapshot(c *hawserv1.ClusterStatusReport) string {
	if c.GetSnapshotAt() == 0 {
		return ""
	}
	return fmt.Sprintf("%s ago, %s", printer.Age(c.GetSnapshotAt()), c.GetSnapshotPath())
}

func showProblems(w io.Writer, who string, ps []*hawserv1.Problem) {
	for _, p := range ps {
		fmt.Fprintf(w, "  ✗ %s: %s: %s\n", who, p.GetObject(), p.GetProblem())
		if p.GetFix() != "" {
			fmt.Fprintf(w, "    next: %s\n", p.GetFix())
		}
	}
}

func keyspace(n *hawserv1.NodeStatusReport) string {
	k := n.GetKeyspace()
	if k.GetConnected() {
		return "connected"
	}
	return "lost for " + printer.Age(k.GetSince())
}

// kernel says how far the kernel is behind the tables.
func kernel(n *hawserv1.NodeStatusReport) string {
	var behind uint64
	for _, t := range n.GetTables() {
		if t.GetLastError() != "" {
			return "error: " + t.GetName()
		}
		behind += t.GetRevision() - t.GetReconciled()
	}
	if behind == 0 {
		return "in sync"
	}
	return fmt.Sprintf("%s behind", printer.Count(behind))
}
