// SPDX-License-Identifier: Apache-2.0

// Package node is `hawser node`: the nodes of the mesh, and how hosts become
// nodes.
package node

import (
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

// New returns the command.
func New(s *session.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "See the nodes of the mesh, and add some"}
	cmd.AddCommand(&cobra.Command{
		Use:   "list",
		Short: "List the nodes of all clusters",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return list(cmd, s) },
	}, newPaths(s), newInvite(s), newForget(s), newDrain(s), newUndrain(s))
	return cmd
}

func newInvite(s *session.Session) *cobra.Command {
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "invite <node>",
		Short: "Print a token with which a host joins the cluster as this node, once",
		Long: "Print a token with which a host joins the cluster as this node, once. The host\n" +
			"makes its own key and gets a certificate, the cluster's etcd endpoints and its\n" +
			"parameters; later starts of its agent need no token.",
		Example: "  api$   hawser node invite node1 >token     # copy the file to the host\n" +
			"  node1# hawser-agent --join @token …",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if ttl < time.Second || ttl > 7*24*time.Hour {
				return session.Usage("--ttl %s: must be between 1s and 168h", ttl)
			}
			r, err := session.Ask(cmd.Context(), s, hawserv1.MeshClient.InviteNode, &hawserv1.InviteNodeRequest{Node: args[0], TtlSeconds: int64(ttl.Seconds())})
			if err != nil {
				return err
			}
			return printer.One(cmd.OutOrStdout(), s.Output, r, func(w io.Writer) error {
				if !s.Quiet {
					fmt.Fprintf(cmd.ErrOrStderr(), "Valid for %s, for one host. There, as root:  hawser-agent --join @FILE (with the token in it) …\n", printer.Duration(ttl))
				}
				_, err := fmt.Fprintln(w, r.GetToken())
				return err
			})
		},
	}
	cmd.Flags().DurationVar(&ttl, "ttl", 15*time.Minute, "how long the token is valid")
	return cmd
}

func newForget(s *session.Session) *cobra.Command {
	var yes, force bool
	cmd := &cobra.Command{
		Use:   "forget <node> --yes",
		Short: "Remove a node that will not come back, and all that it published",
		Long: "Remove a node that will not come back, and all that it published: its addresses,\n" +
			"its backends, its pod CIDR, its enrolment. Open tokens for it are revoked and its certificate is\n" +
			"not renewed any more; an etcd that Hawser runs refuses its key at once. What was\n" +
			"issued by hand, or for an external or shared etcd, is of a user that all nodes\n" +
			"share: it admits its holder until it expires or is revoked there.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				return session.Usage("this removes node %q and its workloads from the mesh; confirm with --yes", args[0])
			}
			r, err := session.Ask(cmd.Context(), s, hawserv1.MeshClient.ForgetNode, &hawserv1.ForgetNodeRequest{Node: args[0], Force: force})
			if err != nil {
				return err
			}
			return printer.One(cmd.OutOrStdout(), s.Output, r, func(w io.Writer) error {
				fmt.Fprintf(w, "Forgot %s; %s keys removed.\n", args[0], printer.Count(r.GetKeysRemoved()))
				if r.GetWasEnrolled() {
					etcd := "the cluster's etcd refuses it from now on"
					if !r.GetCutOff() {
						etcd = "what opens your etcd to it was not issued here: revoke that there"
					}
					fmt.Fprintf(w, "Its certificate is not renewed and ends %s; %s.\n",
						time.Unix(0, r.GetCertificateExpiresAt()).UTC().Format(time.DateOnly), etcd)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	cmd.Flags().BoolVar(&force, "force", false, "also while the node's agent is there")
	return cmd
}

func list(cmd *cobra.Command, s *session.Session) error {
	r, err := session.Ask(cmd.Context(), s, hawserv1.MeshClient.ListNodes, &hawserv1.ListNodesRequest{})
	if err != nil {
		return err
	}
	type row = *hawserv1.NodeInfo
	cols := printer.Columns[row]{
		{Header: "CLUSTER", Cell: row.GetCluster},
		{Header: "NODE", Cell: row.GetName},
		{Header: "STATE", Cell: row.GetState},
		{Header: "HEALTH", Cell: health},
		{Header: "DRAIN", Cell: drain},
		{Header: "ADDRESSES", Cell: func(n row) string { return strings.Join(n.GetAddresses(), ",") }},
		{Header: "TUNNEL", Cell: row.GetTunnelAddress},
		{Header: "POD CIDRS", Cell: func(n row) string { return strings.Join(n.GetPodCidrs(), ",") }},
		{Header: "MTU", Cell: mtu},
		{Header: "WORKLOADS", Cell: func(n row) string { return fmt.Sprint(n.GetWorkloads()) }},
		{Header: "VERSION", Cell: row.GetVersion},
	}
	if slices.ContainsFunc(r.GetNodes(), func(n row) bool { return n.GetProblem() != "" }) {
		cols = append(cols, printer.Column[row]{Header: "PROBLEM", Cell: row.GetProblem})
	}
	return printer.List(cmd.OutOrStdout(), s.Output, r.GetNodes(), cols, "No nodes.")
}

func mtu(n *hawserv1.NodeInfo) string {
	if n.GetMtu() == 0 {
		return ""
	}
	return fmt.Sprint(n.GetMtu())
}

// health is what the node's own cluster says of it, and since when unless all is
// well.
func health(n *hawserv1.NodeInfo) string {
	switch n.GetHealth() {
	case "":
		return "unknown"
	case "alive":
		return "alive"
	}
	return fmt.Sprintf("%s for %s", n.GetHealth(), printer.Age(n.GetHealthSince()))
}
