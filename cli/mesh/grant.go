// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

func newGrant(s *session.Session) *cobra.Command {
	q := &hawserv1.ChangeGrantRequest{}
	var namespaces []string
	limits := map[string]*uint64{}
	asks := map[string]*bool{}
	cmd := &cobra.Command{
		Use:   "grant [peer]",
		Short: "Show, widen or narrow what peers may publish here and ask",
		Long: "Show what peers may publish here and ask, or change what one may. A grant is pinned when\n" +
			"the peer joins: what it declares later is refused until the grant is widened. Never\n" +
			"granted are a default route and other ranges that no cluster has alone, this\n" +
			"cluster's own ranges and those of another peer; service ranges may overlap service\n" +
			"ranges only.",
		Example: "  hawser mesh grant\n" +
			"  hawser mesh grant west --add-pod-cidr 10.20.0.0/16\n" +
			"  hawser mesh grant west --remove-pod-cidr 10.20.0.0/16 --namespaces shop,web\n" +
			"  hawser mesh grant west --namespaces all --max-services 500",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			changes := false
			for _, f := range append([]string{"add-pod-cidr", "remove-pod-cidr", "add-node-cidr", "remove-node-cidr", "add-service-cidr", "remove-service-cidr", "namespaces", "explain", "diff"}, slices.Collect(maps.Keys(limits))...) {
				changes = changes || cmd.Flags().Changed(f)
			}
			switch {
			case changes && len(args) == 0:
				return session.Usage("name the peer whose grant is to change; see: hawser mesh grant")
			case !changes:
				return showGrants(cmd, s, args)
			}
			for _, f := range []string{"add-pod-cidr", "remove-pod-cidr", "add-node-cidr", "remove-node-cidr", "add-service-cidr", "remove-service-cidr", "namespaces"} {
				if list, err := cmd.Flags().GetStringSlice(f); err == nil && cmd.Flags().Changed(f) && len(list) == 0 {
					return session.Usage("--%s names nothing", f)
				}
			}
			q.Peer = args[0]
			if q.AllNamespaces = slices.Equal(namespaces, []string{"all"}); !q.AllNamespaces {
				q.Namespaces = namespaces
			}
			for name, to := range map[string]**uint64{
				"max-nodes": &q.MaxNodes, "max-identities": &q.MaxIdentities, "max-ips": &q.MaxIps,
				"max-services": &q.MaxServices, "max-backends": &q.MaxBackends,
			} {
				if cmd.Flags().Changed(name) {
					*to = limits[name]
				}
			}
			for name, to := range map[string]**bool{"explain": &q.Explain, "diff": &q.Diff} {
				if cmd.Flags().Changed(name) {
					*to = asks[name]
				}
			}
			return changeGrant(cmd, s, q)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&q.AddPodCidrs, "add-pod-cidr", nil, "ranges of pods to grant")
	f.StringSliceVar(&q.RemovePodCidrs, "remove-pod-cidr", nil, "ranges of pods to grant no more")
	f.StringSliceVar(&q.AddNodeCidrs, "add-node-cidr", nil, "ranges of node and tunnel addresses to grant")
	f.StringSliceVar(&q.RemoveNodeCidrs, "remove-node-cidr", nil, "ranges of node and tunnel addresses to grant no more")
	f.StringSliceVar(&q.AddServiceCidrs, "add-service-cidr", nil, "ranges of service addresses to grant")
	f.StringSliceVar(&q.RemoveServiceCidrs, "remove-service-cidr", nil, "ranges of service addresses to grant no more")
	asks["explain"] = f.Bool("explain", true, "it may ask what this cluster's policies say of its workloads' packets")
	asks["diff"] = f.Bool("diff", true, "it may compare its copy of this cluster's records with them")
	f.StringSliceVar(&namespaces, "namespaces", nil, "the only namespaces to grant, or all")
	for name, what := range map[string]string{
		"max-nodes": "nodes", "max-identities": "identities", "max-ips": "addresses", "max-services": "services", "max-backends": "backends",
	} {
		limits[name] = f.Uint64(name, 0, "how many "+what+" to grant")
	}
	return cmd
}

func showGrants(cmd *cobra.Command, s *session.Session, args []string) error {
	r, err := session.Ask(cmd.Context(), s, hawserv1.MeshClient.ListGrants, &hawserv1.ListGrantsRequest{})
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return listGrants(cmd.OutOrStdout(), s.Output, r.GetGrants())
	}
	for _, g := range r.GetGrants() {
		if g.GetPeer() == args[0] {
			return printer.One(cmd.OutOrStdout(), s.Output, g, func(w io.Writer) error { return showGrant(w, g) })
		}
	}
	return session.Answer("no peer %q; see: hawser mesh list", args[0])
}

func listGrants(w io.Writer, format printer.Format, rows []*hawserv1.PeerGrant) error {
	type row = *hawserv1.PeerGrant
	known := func(cell func(row) string) func(row) string {
		return func(g row) string {
			if g.GetProblem() != "" {
				return "?"
			}
			return cell(g)
		}
	}
	return printer.List(w, format, rows, printer.Columns[row]{
		{Header: "PEER", Cell: row.GetPeer},
		{Header: "PODS", Cell: known(func(g row) string { return strings.Join(g.GetPodCidrs(), ",") })},
		{Header: "NODES", Cell: known(func(g row) string { return strings.Join(g.GetNodeCidrs(), ",") })},
		{Header: "IDENTITIES", Cell: known(identities)},
		{Header: "NAMESPACES", Cell: known(grantedNamespaces)},
		{Header: "REFUSED", Cell: known(refusedRecords)},
		{Header: "PROBLEM", Cell: func(g row) string { return cmp.Or(g.GetProblem(), "-") }},
	}, "No peers.  Invite one:  hawser mesh invite")
}

func changeGrant(cmd *cobra.Command, s *session.Session, q *hawserv1.ChangeGrantRequest) error {
	r, err := session.Ask(cmd.Context(), s, hawserv1.MeshClient.ChangeGrant, q)
	if err != nil {
		return err
	}
	return printer.One(cmd.OutOrStdout(), s.Output, r, func(w io.Writer) error {
		if !r.GetChanged() {
			fmt.Fprintln(w, "Nothing changed.")
		}
		return showGrant(w, r.GetGrant())
	})
}

func showGrant(w io.Writer, g *hawserv1.PeerGrant) error {
	if g.GetProblem() != "" {
		return printer.Fields(w, "Peer", g.GetPeer(), "Problem", g.GetProblem())
	}
	return printer.Fields(w, slices.Concat([]string{"Peer", g.GetPeer()}, parts(g), []string{"Refused", refusedRecords(g)})...)
}

// parts are what a grant allows, for printer.Fields.
func parts(g *hawserv1.PeerGrant) []string {
	return []string{
		"Pods", strings.Join(g.GetPodCidrs(), ", "),
		"Nodes", strings.Join(g.GetNodeCidrs(), ", "),
		"Services", strings.Join(g.GetServiceCidrs(), ", "),
		"Identities", identities(g),
		"Namespaces", grantedNamespaces(g),
		"At most", fmt.Sprintf("%s nodes, %s identities, %s addresses, %s services, %s backends", printer.Count(g.GetMaxNodes()),
			printer.Count(g.GetMaxIdentities()), printer.Count(g.GetMaxIps()), printer.Count(g.GetMaxServices()), printer.Count(g.GetMaxBackends())),
		"May ask", mayAsk(g),
	}
}

// mayAsk is what the peer may read beside the public records.
func mayAsk(g *hawserv1.PeerGrant) string {
	var out []string
	if g.GetExplain() {
		out = append(out, "what policies say of its packets")
	}
	if g.GetDiff() {
		out = append(out, "whether its copy is right")
	}
	if len(out) == 0 {
		return "nothing"
	}
	return strings.Join(out, ", ")
}

func identities(g *hawserv1.PeerGrant) string {
	return fmt.Sprintf("%d-%d", g.GetIdentityMin(), g.GetIdentityMax())
}

func grantedNamespaces(g *hawserv1.PeerGrant) string {
	if len(g.GetNamespaces()) == 0 {
		return "all"
	}
	return strings.Join(g.GetNamespaces(), ",")
}

func refusedRecords(g *hawserv1.PeerGrant) string {
	var out []string
	for _, reason := range slices.Sorted(maps.Keys(g.GetRefused())) {
		out = append(out, fmt.Sprintf("%s %d", reason, g.GetRefused()[reason]))
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}
