// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
)

func newDeclare(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "declare",
		Short: "Print this cluster as a manifest for the other side's --peers-file",
		Long: "Print this cluster as a manifest of kind Peer. Two clusters that each have the\n" +
			"other's in their hawser-apiserver --peers-file are peers, without a token. What is\n" +
			"declared is what the peer may publish.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, conn, err := s.Mesh()
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			ctx, cancel := s.Deadline(cmd.Context())
			defer cancel()
			c, err := client.ClusterStatus(ctx, &hawserv1.ClusterStatusRequest{})
			if err != nil {
				return err
			}
			ca, err := client.CAStatus(ctx, &hawserv1.CAStatusRequest{})
			if err != nil {
				return err
			}
			bundle := ""
			for _, cert := range ca.GetCertificates() {
				bundle += cert.GetPem()
			}
			m := map[string]any{
				"apiVersion": peering.DeclarationVersion, "kind": peering.DeclarationKind, "metadata": map[string]any{"name": c.GetCluster()},
				"spec": map[string]any{
					"id": c.GetClusterId(), "endpoints": c.GetFederationEndpoints(), "ca": bundle,
					"podCIDRs": c.GetPodCidrs(), "nodeCIDRs": c.GetNodeCidrs(), "serviceCIDRs": c.GetServiceCidrs(),
				},
			}
			var text []byte
			if s.Output == printer.JSON {
				text, err = json.MarshalIndent(m, "", "  ")
			} else {
				text, err = yaml.Marshal(m)
			}
			if err != nil {
				return fmt.Errorf("print the declaration: %w", err)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), string(text))
			return err
		},
	}
}
