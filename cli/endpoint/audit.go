// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/session"
)

func newAudit(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "audit [[CLUSTER/]NAMESPACE/]NAME | ADDRESS | ID on|off",
		Short: "Report what policy would drop of an endpoint, and let it pass",
		Long: "With on, what policy would drop of the endpoint's packets passes and is reported, once\n" +
			"for each flow: hawser monitor --type verdict. The other end's policy is enforced as\n" +
			"ever. With off, policy is enforced again, on open connections too. It stays so when the\n" +
			"agent restarts. For all endpoints of a node: hawser-agent --policy-audit.",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			on, ok := map[string]bool{"on": true, "off": false}[args[1]]
			if !ok {
				return session.Usage("%q: want on or off", args[1])
			}
			e, one, err := s.Endpoint(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, err = session.Gather(cmd.Context(), one, func(ctx context.Context, n session.NodeConn) ([]row, error) {
				r, err := n.SetEndpoint(ctx, &hawserv1.SetEndpointRequest{Id: e.GetId(), PolicyAudit: on})
				return []row{r.GetEndpoint()}, err
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "endpoint %s on %s: audit %s\n", workload(e), e.GetNode(), args[1])
			if !on && e.GetNodePolicyAudit() {
				s.Warn("node %s audits all its endpoints (--policy-audit)", e.GetNode())
			}
			return nil
		},
	}
}
