// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

// waitStep is how often --wait looks.
const waitStep = 100 * time.Millisecond

func newDrain(s *session.Session) *cobra.Command {
	var force bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "drain <node>",
		Short: "Have new connections go to backends on other nodes",
		Long: "Have new connections go to backends on other nodes, of this cluster or of peers.\n" +
			"Connections that the node's backends have live on. The node's agent follows, also\n" +
			"after a restart, until hawser node undrain. It is refused when services would be\n" +
			"left without a backend that takes new connections.",
		Example: "  hawser node drain node1 --wait 10s && hawser node list",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDrain(cmd, s, &hawserv1.DrainNodeRequest{Node: args[0], Force: force}, wait)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also when services are left without a backend")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait this long until none of its backends takes new connections")
	return cmd
}

func newUndrain(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "undrain <node>",
		Short: "Have a drained node's backends take new connections again",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDrain(cmd, s, &hawserv1.DrainNodeRequest{Node: args[0], Undrain: true}, 0)
		},
	}
}

func runDrain(cmd *cobra.Command, s *session.Session, q *hawserv1.DrainNodeRequest, wait time.Duration) error {
	client, conn, err := s.Mesh()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := s.Deadline(cmd.Context())
	defer cancel()
	r, err := client.DrainNode(ctx, q)
	if err != nil {
		return err
	}
	if wait > 0 {
		if err := awaitDrained(cmd.Context(), client, r, q, wait); err != nil {
			return err
		}
	}
	return printer.One(cmd.OutOrStdout(), s.Output, r, func(w io.Writer) error {
		how := "is in use again"
		if !q.GetUndrain() {
			how = fmt.Sprintf("is %s; it has %s backends", r.GetDrain(), printer.Count(r.GetBackends()))
		}
		if !r.GetPresent() {
			how += "; its agent is down and follows when it is back"
		}
		_, err := fmt.Fprintf(w, "Node %s %s.\n", q.GetNode(), how)
		return err
	})
}

// awaitDrained asks again until the node is drained, which changes r.
func awaitDrained(ctx context.Context, client hawserv1.MeshClient, r *hawserv1.DrainNodeResponse, q *hawserv1.DrainNodeRequest, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	again := &hawserv1.DrainNodeRequest{Node: q.GetNode(), Force: true} // it was let already
	for r.GetDrain() != "drained" {
		select {
		case <-ctx.Done():
			return fmt.Errorf("node %s is still %s after %s; see: hawser service list, hawser node list", q.GetNode(), r.GetDrain(), printer.Duration(wait))
		case <-time.After(waitStep):
		}
		now, err := client.DrainNode(ctx, again)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil {
			r.Drain, r.Backends, r.Present = now.GetDrain(), now.GetBackends(), now.GetPresent()
		}
	}
	return nil
}

// drain is whether a node is drained, and since when.
func drain(n *hawserv1.NodeInfo) string {
	if n.GetDrain() == "" {
		return "-"
	}
	return fmt.Sprintf("%s for %s", n.GetDrain(), printer.Age(n.GetDrainSince()))
}
