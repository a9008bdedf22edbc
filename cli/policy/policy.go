// SPDX-License-Identifier: Apache-2.0

// Package policy is `hawser policy`: applying and reading policy objects.
package policy

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/manifest"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

// New returns the command.
func New(s *session.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Say who may talk to whom",
	}
	cmd.AddCommand(newApply(s), newDelete(s), newList(s), newGet(s), newTrace(s), newLint(s), newStatus(s))
	return cmd
}

func newApply(s *session.Session) *cobra.Command {
	var files []string
	var preview bool
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Store policy objects and enforce them on every node of the cluster",
		Long: "Store policy objects and enforce them on every node of the cluster.\n" +
			"Accepted: NetworkPolicy, CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy and\n" +
			"MeshPolicy as YAML (one or many documents), and the JSON array of rules.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if preview {
				return dryRun(cmd, s, files)
			}
			return manifest.Each(cmd, s, files, func(ctx context.Context, client hawserv1.MeshClient, source string) ([]*hawserv1.AppliedObject, error) {
				r, err := client.ApplyPolicy(ctx, &hawserv1.ApplyPolicyRequest{Source: source})
				for _, w := range r.GetWarnings() {
					s.Warn("%s", w)
				}
				return r.GetObjects(), err
			})
		},
	}
	manifest.Bind(cmd, &files)
	cmd.Flags().BoolVar(&preview, "dry-run", false, "store nothing; list the pairs of identities that the objects would open and close")
	return cmd
}

func newDelete(s *session.Session) *cobra.Command {
	return manifest.NewDelete(s, &cobra.Command{Short: "Delete a policy object"}, `namespace of NAME ("_" for cluster-wide objects)`,
		func(ctx context.Context, client hawserv1.MeshClient, namespace, name, source string) ([]*hawserv1.AppliedObject, error) {
			r, err := client.DeletePolicy(ctx, &hawserv1.DeletePolicyRequest{Namespace: namespace, Name: name, Source: source})
			return r.GetObjects(), err
		})
}

func newList(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the policy objects of the cluster",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := list(cmd.Context(), s)
			if err != nil {
				return err
			}
			type row = *hawserv1.PolicyInfo
			return printer.List(cmd.OutOrStdout(), s.Output, r.GetPolicies(), printer.Columns[row]{
				{Header: "NAMESPACE", Cell: row.GetNamespace},
				{Header: "NAME", Cell: row.GetName},
				{Header: "KIND", Cell: row.GetKind},
				{Header: "RULES", Cell: func(p row) string { return fmt.Sprint(p.GetRules()) }},
				{Header: "SELECTS", Cell: row.GetSelects},
				{Header: "REVISION", Cell: func(p row) string { return fmt.Sprint(p.GetRevision()) }},
				{Header: "AGE", Cell: func(p row) string { return printer.Age(p.GetUpdatedAt()) }},
			}, "No policies: everything is allowed.")
		},
	}
}

func list(ctx context.Context, s *session.Session) (*hawserv1.ListPoliciesResponse, error) {
	return session.Ask(ctx, s, hawserv1.MeshClient.ListPolicies, &hawserv1.ListPoliciesRequest{})
}

func newGet(s *session.Session) *cobra.Command {
	var namespace, endpoint string
	cmd := &cobra.Command{
		Use:   "get [NAMESPACE/]NAME | --endpoint ENDPOINT",
		Short: "Show a policy object, or what an endpoint's policy has become",
		Long: "Show a policy object as it was applied, or, with --endpoint, the entries that the\n" +
			"endpoint's policy has become on its node, with the rule behind each and how often it\n" +
			"decided: for the first packet of each flow in each direction, once more at each change\n" +
			"of policy, and for every packet that it denied. Endpoints of a node with the same\n" +
			"labels share entries and counts. An endpoint is [[cluster/]namespace/]name, an address,\n" +
			"or an id that it has on its node, as in: hawser endpoint list",
		Example: "  hawser policy get demo/only-east\n  hawser policy get --endpoint demo/echo-1",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			of := cmd.Flags().Changed("endpoint")
			switch {
			case (len(args) == 0) == !of:
				return session.Usage("give a policy's [NAMESPACE/]NAME, or --endpoint with an endpoint's name, address or id, and not both")
			case of && namespace != "":
				return session.Usage("--namespace is of a policy's NAME: write --endpoint %s/NAME", namespace)
			case of:
				return realised(cmd, s, endpoint)
			}
			return object(cmd, s, namespace, args[0])
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", `namespace of NAME ("_" for cluster-wide objects; default: any)`)
	cmd.Flags().StringVar(&endpoint, "endpoint", "", "endpoint: [[cluster/]namespace/]name, address, or id of its node")
	return cmd
}

func object(cmd *cobra.Command, s *session.Session, namespace, name string) error {
	r, err := list(cmd.Context(), s)
	if err != nil {
		return err
	}
	p, err := session.Pick("policy", r.GetPolicies(), namespace, name)
	if err != nil {
		return err
	}
	return printer.One(cmd.OutOrStdout(), s.Output, p, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, p.GetSource())
		return err
	})
}

// lastIf orders what holds for behind what it does not hold for.
func lastIf(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

func realised(cmd *cobra.Command, s *session.Session, endpoint string) error {
	e, one, err := s.Endpoint(cmd.Context(), endpoint)
	if err != nil {
		return err
	}
	rows, err := session.Gather(cmd.Context(), one, func(ctx context.Context, n session.NodeConn) ([]*hawserv1.RuleEntry, error) {
		r, err := n.ListRules(ctx, &hawserv1.ListRulesRequest{EndpointId: e.GetId()})
		return r.GetEntries(), err
	})
	if err != nil {
		return err
	}
	slices.SortFunc(rows, func(a, b *hawserv1.RuleEntry) int {
		return cmp.Or(cmp.Compare(a.GetDirection(), b.GetDirection()), lastIf(a.GetDefaultDeny(), b.GetDefaultDeny()), cmp.Compare(a.GetIdentity(), b.GetIdentity()),
			cmp.Compare(a.GetProtocol(), b.GetProtocol()), cmp.Compare(a.GetPort(), b.GetPort()))
	})
	type row = *hawserv1.RuleEntry
	return printer.List(cmd.OutOrStdout(), s.Output, rows, printer.Columns[row]{
		{Header: "DIRECTION", Cell: row.GetDirection},
		{Header: "VERDICT", Cell: func(r row) string {
			if r.GetAudited() {
				return r.GetVerdict() + " (audit)"
			}
			return r.GetVerdict()
		}},
		{Header: "PEER", Cell: func(r row) string {
			switch {
			case r.GetDefaultDeny():
				return "all else"
			case r.GetIdentity() == 0:
				return "any"
			}
			return fmt.Sprint(r.GetIdentity())
		}},
		{Header: "PROTOCOL", Cell: row.GetProtocol},
		{Header: "PORT", Cell: func(r row) string {
			switch {
			case r.GetEndPort() != 0:
				return fmt.Sprintf("%d-%d", r.GetPort(), r.GetEndPort())
			case r.GetPort() == 0:
				return "any"
			case strings.HasPrefix(strings.ToLower(r.GetProtocol()), "icmp"):
				return fmt.Sprintf("type %d", r.GetPort()&0xFF)
			}
			return fmt.Sprint(r.GetPort())
		}},
		{Header: "HITS", Cell: func(r row) string { return fmt.Sprint(r.GetHits()) }},
		{Header: "RULE", Cell: row.GetOrigin},
		{Header: "LABELS", Cell: func(r row) string { return printer.Labels(r.GetLabels()) }},
	}, "No entries: no policy selects this endpoint, or none allows anything.")
}
