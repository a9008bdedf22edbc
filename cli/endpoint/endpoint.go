// SPDX-License-Identifier: Apache-2.0

// Package endpoint is `hawser endpoint`: the workloads of the nodes.
package endpoint

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

type row = *hawserv1.Endpoint

// New returns the command.
func New(s *session.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "endpoint",
		Aliases: []string{"ep"},
		Short:   "See the workloads of the nodes",
	}
	cmd.AddCommand(newList(s), newGet(s), newAudit(s))
	return cmd
}

func newList(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the endpoints of the cluster's nodes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := s.Endpoints(cmd.Context())
			if err != nil {
				return err
			}
			return printer.List(cmd.OutOrStdout(), s.Output, rows, printer.Columns[row]{
				{Header: "NODE", Cell: row.GetNode},
				{Header: "ID", Cell: func(e row) string { return fmt.Sprint(e.GetId()) }},
				{Header: "WORKLOAD", Cell: workload},
				{Header: "ADDRESS", Cell: func(e row) string { return strings.Join(e.GetAddresses(), ",") }},
				{Header: "IDENTITY", Cell: func(e row) string { return fmt.Sprint(e.GetIdentity()) }},
				{Header: "STATE", Cell: row.GetState},
				{Header: "POLICY", Cell: enforced},
				{Header: "LABELS", Cell: func(e row) string { return printer.Labels(e.GetLabels()) }},
			}, "No endpoints.  The CNI plugin makes them.")
		},
	}
}

func workload(e row) string { return e.GetNamespace() + "/" + e.GetName() }

// enforced says in which directions policy decides, and whether that is only
// reported.
func enforced(e row) string {
	text := directions(e)
	if e.GetPolicyAudit() || e.GetNodePolicyAudit() {
		text += " (audit)"
	}
	return text
}

func directions(e row) string {
	switch {
	case e.GetIngressEnforced() && e.GetEgressEnforced():
		return "both"
	case e.GetIngressEnforced():
		return "ingress"
	case e.GetEgressEnforced():
		return "egress"
	}
	return "none"
}

func newGet(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "get [[CLUSTER/]NAMESPACE/]NAME | ADDRESS | ID",
		Short: "Show one endpoint",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, _, err := s.Endpoint(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printer.One(cmd.OutOrStdout(), s.Output, e, func(w io.Writer) error { return show(w, e) })
		},
	}
}

func gateways(e row) string {
	if e.GetGateway6() == "" {
		return e.GetGateway()
	}
	return e.GetGateway() + ", " + e.GetGateway6()
}

func show(w io.Writer, e row) error {
	return printer.Fields(w,
		"Endpoint", fmt.Sprintf("%d on %s (cluster %s)", e.GetId(), e.GetNode(), e.GetCluster()),
		"Workload", workload(e),
		"State", e.GetState(),
		"Addresses", strings.Join(e.GetAddresses(), ", "),
		"Gateway", gateways(e),
		"MTU", fmt.Sprint(e.GetMtu()),
		"Identity", fmt.Sprint(e.GetIdentity()),
		"Labels", strings.Join(e.GetLabels(), "\n\t"),
		"Policy", enforced(e),
		"Rule set", fmt.Sprint(e.GetRuleSet()),
		"Device", fmt.Sprintf("%s (index %d) ↔ %s (%s)", e.GetHostDevice(), e.GetIfindex(), e.GetIfname(), e.GetMac()),
		"Container", e.GetContainerId(),
		"Age", printer.Age(e.GetCreatedAt()),
	)
}
