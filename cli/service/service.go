// SPDX-License-Identifier: Apache-2.0

// Package service is `hawser service`: services of this cluster and of the mesh.
package service

import (
	"context"
	"fmt"
	"io"
	"net/netip"
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
		Use:     "service",
		Aliases: []string{"svc"},
		Short:   "Serve a service from one cluster or from all of them",
	}
	cmd.AddCommand(newApply(s), newDelete(s), newList(s), newGet(s))
	return cmd
}

func newApply(s *session.Session) *cobra.Command {
	var files []string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Store Kubernetes Service objects",
		Long: "Store Kubernetes Service objects (YAML or JSON, one or many documents). With the\n" +
			"annotation hawser.io/global: \"true\" on both sides, services of equal namespace and\n" +
			"name are one service with the backends of all clusters.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return manifest.Each(cmd, s, files, func(ctx context.Context, client hawserv1.MeshClient, source string) ([]*hawserv1.AppliedObject, error) {
				r, err := client.ApplyService(ctx, &hawserv1.ApplyServiceRequest{Source: source, DryRun: dryRun})
				return r.GetObjects(), err
			})
		},
	}
	manifest.Bind(cmd, &files)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check the objects and store nothing")
	return cmd
}

func newDelete(s *session.Session) *cobra.Command {
	return manifest.NewDelete(s, &cobra.Command{Short: "Delete a service"}, "namespace of NAME",
		func(ctx context.Context, client hawserv1.MeshClient, namespace, name, source string) ([]*hawserv1.AppliedObject, error) {
			r, err := client.DeleteService(ctx, &hawserv1.DeleteServiceRequest{Namespace: namespace, Name: name, Source: source})
			return r.GetObjects(), err
		})
}

func list(ctx context.Context, s *session.Session) ([]*hawserv1.ServiceInfo, error) {
	r, err := session.Ask(ctx, s, hawserv1.MeshClient.ListServices, &hawserv1.ListServicesRequest{})
	return r.GetServices(), err
}

func newList(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the services that the cluster consumes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := list(cmd.Context(), s)
			if err != nil {
				return err
			}
			type row = *hawserv1.ServiceInfo
			return printer.List(cmd.OutOrStdout(), s.Output, rows, printer.Columns[row]{
				{Header: "ID", Cell: func(r row) string { return fmt.Sprint(r.GetId()) }},
				{Header: "NAMESPACE", Cell: row.GetNamespace},
				{Header: "NAME", Cell: row.GetName},
				{Header: "ADDRESS", Cell: address},
				{Header: "PORTS", Cell: ports},
				{Header: "SCOPE", Cell: scope},
				{Header: "CLUSTERS", Cell: func(r row) string { return strings.Join(r.GetClusters(), ",") }},
				{Header: "BACKENDS", Cell: backends},
			}, "No services.  Make one:  hawser service apply -f FILE")
		},
	}
}

// address is None for a headless service, as in its manifest.
func address(r *hawserv1.ServiceInfo) string {
	if len(r.GetVips()) == 0 {
		return "None"
	}
	return strings.Join(r.GetVips(), ",")
}

// backends is how many serve, by family if the service has both: an address of one
// leads to backends of that family only. A backend of several ports is one.
func backends(r *hawserv1.ServiceInfo) string {
	var count, has [2]int // IPv4, IPv6
	family := func(text string) int {
		a, err := netip.ParseAddr(text)
		if err == nil && a.Unmap().Is6() {
			return 1
		}
		return 0
	}
	for _, vip := range r.GetVips() {
		has[family(vip)]++
	}
	seen := map[string]bool{}
	for _, b := range r.GetBackends() {
		if !seen[b.GetIp()] {
			seen[b.GetIp()] = true
			count[family(b.GetIp())]++
		}
	}
	if has[0]+count[0] > 0 && has[1]+count[1] > 0 {
		return fmt.Sprintf("%d IPv4, %d IPv6", count[0], count[1])
	}
	return fmt.Sprint(count[0] + count[1])
}

func scope(r *hawserv1.ServiceInfo) string {
	switch {
	case r.GetGlobal() && !r.GetShared():
		return "global, not shared"
	case r.GetGlobal():
		return "global"
	}
	return "local"
}

func ports(r *hawserv1.ServiceInfo) string {
	var out []string
	for _, p := range r.GetPorts() {
		out = append(out, portText(p.GetPort(), p.GetProtocol()))
	}
	return strings.Join(out, ",")
}

func newGet(s *session.Session) *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:   "get [NAMESPACE/]NAME",
		Short: "Show a service with its backends in all clusters",
		Long: "Show a service with its backends in all clusters, by the service's port that they serve:\n" +
			"those with the same name and protocol. A port without backends refuses new connections.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			rows, err := list(cmd.Context(), s)
			if err != nil {
				return err
			}
			r, err := session.Pick("service", rows, namespace, args[0])
			if err != nil {
				return err
			}
			return printer.One(cmd.OutOrStdout(), s.Output, r, func(w io.Writer) error { return show(w, r) })
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "namespace (default: any)")
	return cmd
}

func show(w io.Writer, r *hawserv1.ServiceInfo) error {
	if err := printer.Fields(w,
		"Service", r.GetNamespace()+"/"+r.GetName(),
		"Global id", fmt.Sprint(r.GetId()),
		"Address", address(r),
		"Ports", ports(r),
		"Scope", scope(r),
		"Clusters", strings.Join(r.GetClusters(), ", "),
	); err != nil {
		return err
	}
	fmt.Fprintln(w)
	return printer.Rows(w, printer.Table, served(r), printer.Columns[servedRow]{
		{Header: "PORT", Cell: func(b servedRow) string { return b.port }},
		{Header: "NAME", Cell: func(b servedRow) string { return b.name }},
		{Header: "BACKEND", Cell: func(b servedRow) string { return b.backend }},
		{Header: "CLUSTER", Cell: func(b servedRow) string { return b.GetCluster() }},
		{Header: "NODE", Cell: func(b servedRow) string { return b.GetNode() }},
		{Header: "WORKLOAD", Cell: func(b servedRow) string { return b.GetWorkload() }},
		{Header: "STATE", Cell: func(b servedRow) string { return b.GetState() }},
	}, "No backends: new connections are refused.")
}
