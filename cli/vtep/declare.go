// SPDX-License-Identifier: Apache-2.0

package vtep

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

func newAdd(s *session.Session) *cobra.Command {
	q := &hawserv1.AddVTEPRequest{}
	cmd := &cobra.Command{
		Use:   "add PREFIX --tunnel ADDRESS",
		Short: "Declare an external tunnel endpoint with a prefix behind it",
		Long: "Declare an external tunnel endpoint: a host or switch that speaks VXLAN but runs no\n" +
			"agent. Pods of the whole mesh reach PREFIX through it, and it reaches the pods of the\n" +
			"nodes that it is told of. What comes from it is of the outside: world, or the prefix\n" +
			"that a policy names (fromCIDR). PREFIX is part of the cluster's pod CIDRs that no node\n" +
			"has, ADDRESS part of its node CIDRs. The same again changes nothing; another ADDRESS,\n" +
			"MAC or VNI replaces what was declared.",
		Example: "  hawser vtep add 10.1.200.0/24 --tunnel 172.30.1.50\n" +
			"  hawser vtep add 10.1.201.0/24 --tunnel 172.30.1.51 --vni 4096 --mac 52:54:00:12:34:56",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.Prefix = args[0]
			r, err := session.Ask(cmd.Context(), s, hawserv1.MeshClient.AddVTEP, q)
			if err != nil {
				return err
			}
			return show(cmd, s, r, r.GetVtep(), r.GetAction())
		},
	}
	cmd.Flags().StringVar(&q.TunnelAddress, "tunnel", "", "address that the endpoint sends from and is sent to")
	cmd.Flags().StringVar(&q.Mac, "mac", "", "hardware address that packets to it carry inside (default 02:00:00:00:00:00)")
	cmd.Flags().Uint32Var(&q.Vni, "vni", 0, "VNI of packets from and to it (default 2)")
	cmd.Flags().BoolVar(&q.DryRun, "dry-run", false, "only say what would change")
	_ = cmd.MarkFlagRequired("tunnel")
	return cmd
}

func newDelete(s *session.Session) *cobra.Command {
	q := &hawserv1.DeleteVTEPRequest{}
	cmd := &cobra.Command{
		Use:   "delete PREFIX",
		Short: "Take back the declaration of an external tunnel endpoint",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.Prefix = args[0]
			r, err := session.Ask(cmd.Context(), s, hawserv1.MeshClient.DeleteVTEP, q)
			if err != nil {
				return err
			}
			return show(cmd, s, r, r.GetVtep(), r.GetAction())
		},
	}
	cmd.Flags().BoolVar(&q.DryRun, "dry-run", false, "only say what would change")
	return cmd
}

func show(cmd *cobra.Command, s *session.Session, m proto.Message, v *hawserv1.VTEPInfo, action string) error {
	return printer.One(cmd.OutOrStdout(), s.Output, m, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s behind %s (MAC %s, VNI %d) %s\n", v.GetPrefix(), v.GetTunnelAddress(), v.GetMac(), v.GetVni(), action)
		return err
	})
}
