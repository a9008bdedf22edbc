// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/clustermesh/invitation"
)

// confirm shows what the two clusters would grant each other and asks whether
// that is right. Then req holds what was agreed to: with other grants there is no
// join. It is an error when nobody agreed; what blocks the join is left to the
// join to say.
func confirm(cmd *cobra.Command, s *session.Session, req *hawserv1.JoinRequest, args []string, file string) error {
	look := proto.CloneOf(req)
	look.PreflightOnly = true
	r, err := askJoin(cmd.Context(), s, look)
	if err != nil || blocked(r.GetFindings()) {
		return err
	}
	out := cmd.ErrOrStderr()
	showFindings(out, r.GetFindings())
	if err := showBoth(out, r); err != nil {
		return err
	}
	again := "hawser mesh join <token> --yes"
	if len(args) == 0 {
		again = "hawser mesh join --file " + file + " --yes"
	}
	in := cmd.InOrStdin()
	if f, ok := in.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		return session.Usage("nobody is here to confirm these grants, and nothing was changed; if they are right:  %s", again)
	}
	if !agreed(in, out, r.GetPeer()) {
		return session.Answer("not joined; nothing was changed on either side")
	}
	req.Confirmed = r.GetGrantsHash()
	return nil
}

// agreed asks once; only yes is yes.
func agreed(in io.Reader, out io.Writer, peer string) bool {
	fmt.Fprintf(out, "Join %s with these grants? [y/N] ", peer)
	line, _ := bufio.NewReader(io.LimitReader(in, 64)).ReadString('\n') // what cannot be read is no yes
	answer := strings.ToLower(strings.TrimSpace(line))
	return answer == "y" || answer == "yes"
}

func askJoin(ctx context.Context, s *session.Session, req *hawserv1.JoinRequest) (*hawserv1.JoinResponse, error) {
	if _, err := invitation.Parse(req.GetToken()); err != nil && req.GetPeer() == "" {
		return nil, session.Usage("%v", err)
	}
	client, conn, err := s.Mesh()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, max(s.Timeout, 30*time.Second))
	defer cancel()
	return client.Join(ctx, req)
}

func showFindings(w io.Writer, fs []*hawserv1.Finding) {
	for _, f := range fs {
		mark := "warning"
		if f.GetBlocking() {
			mark = "blocking"
		}
		fmt.Fprintf(w, "%s  %s: %s\n", mark, f.GetObject(), f.GetProblem())
		if f.GetFix() != "" {
			fmt.Fprintf(w, "         %s\n", f.GetFix())
		}
	}
}

// showBoth shows what both sides of a join grant.
func showBoth(w io.Writer, r *hawserv1.JoinResponse) error {
	if r.GetGrant() == nil || r.GetGranted() == nil {
		return nil // a peer that is looked at again; its grant: hawser mesh grant
	}
	fmt.Fprintf(w, "%s may publish and ask here:\n", r.GetPeer())
	if err := printer.Fields(w, parts(r.GetGrant())...); err != nil {
		return err
	}
	fmt.Fprintf(w, "This cluster, %s, may publish and ask there:\n", r.GetGranted().GetPeer())
	return printer.Fields(w, parts(r.GetGranted())...)
}
