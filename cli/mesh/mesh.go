// SPDX-License-Identifier: Apache-2.0

// Package mesh is `hawser mesh`: joining clusters and watching their peerings.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/doctor"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/kvstore"
)

// New returns the command.
func New(s *session.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mesh",
		Short: "Join clusters and see how they are connected",
	}
	cmd.AddCommand(newInvite(s), newJoin(s), newPreflight(s), newLeave(s), newGrant(s), newDeclare(s), newRotateCA(s), newSet(s), newStatus(s), newList(s), doctor.New(s))
	return cmd
}

func newInvite(s *session.Session) *cobra.Command {
	var to string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "invite",
		Short: "Print a token with which another cluster can join, once",
		Example: "  east$ hawser mesh invite --to west --ttl 15m\n" +
			"  west$ hawser mesh join <token>",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ttl < time.Second || ttl > 24*time.Hour {
				return session.Usage("--ttl %s: must be between 1s and 24h", ttl)
			}
			r, err := session.Ask(cmd.Context(), s, hawserv1.MeshClient.Invite, &hawserv1.InviteRequest{To: to, TtlSeconds: int64(ttl.Seconds())})
			if err != nil {
				return err
			}
			return printer.One(cmd.OutOrStdout(), s.Output, r, func(w io.Writer) error {
				if !s.Quiet {
					fmt.Fprintf(cmd.ErrOrStderr(), "Valid for %s, for one cluster%s. On the other side:  hawser mesh join <token>\n",
						printer.Duration(ttl), only(to))
				}
				_, err := fmt.Fprintln(w, r.GetToken())
				return err
			})
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "the only cluster that may use the token (default: any)")
	cmd.Flags().DurationVar(&ttl, "ttl", 15*time.Minute, "how long the token is valid")
	return cmd
}

func only(to string) string {
	if to == "" {
		return ", whichever is first: --to names the only one that may use it"
	}
	return " (" + to + ")"
}

func newJoin(s *session.Session) *cobra.Command {
	var file string
	var yes bool
	var a ages
	cmd := &cobra.Command{
		Use:   "join [token]",
		Short: "Join the mesh of the cluster that made the token",
		Long: "Join the mesh of the cluster that made the token. The token is an argument, the\n" +
			"content of --file, or, with --file -, of standard input. What each side grants the\n" +
			"other is shown and asked for; --yes agrees to it.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := readToken(cmd.InOrStdin(), args, file)
			if err != nil {
				return err
			}
			r := &hawserv1.JoinRequest{Token: token}
			if r.StaleAfter, r.ExpireAfter, err = a.parse(); err != nil {
				return err
			}
			if !yes {
				if err := confirm(cmd, s, r, args, file); err != nil {
					return err
				}
			}
			return join(cmd, s, r)
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "agree to what the two clusters grant each other")
	cmd.Flags().StringVarP(&file, "file", "f", "", "file with the token, - for standard input")
	a.bind(cmd)
	return cmd
}

func newPreflight(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "preflight <token|peer>",
		Short: "Check whether a join would succeed, or how a peer fits by now, and change nothing",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if kvstore.ValidateClusterName(args[0]) == nil { // no token is one
				return join(cmd, s, &hawserv1.JoinRequest{Peer: args[0], PreflightOnly: true})
			}
			return join(cmd, s, &hawserv1.JoinRequest{Token: args[0], PreflightOnly: true})
		},
	}
}

func readToken(stdin io.Reader, args []string, file string) (string, error) {
	var raw []byte
	var err error
	switch {
	case len(args) == 1 && file == "":
		return strings.TrimSpace(args[0]), nil
	case len(args) == 1:
		return "", session.Usage("give the token as an argument or by --file, not both")
	case file == "-":
		raw, err = io.ReadAll(io.LimitReader(stdin, 64<<10))
	case file != "":
		raw, err = os.ReadFile(file)
	default:
		return "", session.Usage("no token; get one on the other cluster: hawser mesh invite")
	}
	if err != nil {
		return "", session.Usage("read the token: %v", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

func join(cmd *cobra.Command, s *session.Session, req *hawserv1.JoinRequest) error {
	r, err := askJoin(cmd.Context(), s, req)
	if err != nil {
		return err
	}
	if err := printer.One(cmd.OutOrStdout(), s.Output, r, func(w io.Writer) error {
		if len(req.GetConfirmed()) == 0 {
			showFindings(w, r.GetFindings())
			if err := showBoth(w, r); err != nil {
				return err
			}
		}
		switch {
		case r.GetJoined():
			fmt.Fprintf(w, "Joined %s (cluster id %d).  Watch it:  hawser mesh status\n"+
				"Whether its nodes and ours reach each other is known in some seconds:  hawser mesh preflight %[1]s\n", r.GetPeer(), r.GetPeerId())
		case req.GetPeer() != "" && len(r.GetFindings()) == 0:
			fmt.Fprintf(w, "%s fits: nothing stands against it.\n", r.GetPeer())
		case req.GetPeer() != "":
		case req.GetPreflightOnly() && !blocked(r.GetFindings()):
			fmt.Fprintf(w, "A join with %s would succeed.\n", r.GetPeer())
		}
		return nil
	}); err != nil {
		return err
	}
	if blocked(r.GetFindings()) && req.GetPeer() != "" {
		return session.Answer("%s would not be admitted again as it is now", r.GetPeer())
	}
	if blocked(r.GetFindings()) {
		return session.Answer("cannot join %q; nothing was changed on either side", r.GetPeer())
	}
	return nil
}

func blocked(fs []*hawserv1.Finding) bool {
	for _, f := range fs {
		if f.GetBlocking() {
			return true
		}
	}
	return false
}

func newLeave(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "leave <peer>",
		Short: "End a peering and remove all that came from the peer",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, conn, err := s.Mesh()
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			ctx, cancel := context.WithTimeout(cmd.Context(), max(s.Timeout, time.Minute))
			defer cancel()
			r, err := client.Leave(ctx, &hawserv1.LeaveRequest{Peer: args[0]})
			if err != nil {
				return err
			}
			return printer.One(cmd.OutOrStdout(), s.Output, r, func(w io.Writer) error {
				own, err := s.ClusterName()
				if err == nil {
					_, err = fmt.Fprintf(w, "Left %s; %s keys of it removed.  The other side keeps its half until it leaves too, there:  hawser mesh leave %s\n",
						args[0], printer.Count(r.GetKeysRemoved()), own)
				}
				return err
			})
		},
	}
}

func newList(s *session.Session) *cobra.Command {
	cmd := newStatus(s)
	cmd.Use, cmd.Short = "list", "List the peers (the same as status, but never fails)"
	inner := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := inner(cmd, args)
		var e *session.Error
		if errors.As(err, &e) && e.Code == session.No {
			return nil
		}
		return err
	}
	return cmd
}
