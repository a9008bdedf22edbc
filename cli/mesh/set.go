// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

// ages are the flags that say how long the data of a peer is believed.
type ages struct{ stale, expire string }

func (a *ages) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&a.stale, "stale-after", "", "age past which the peer's data is the last resort, or default (the cluster's)")
	f.StringVar(&a.expire, "expire-after", "", "age past which it is not believed: services withdrawn, identities unknown; never, or default (the cluster's)")
}

// parse is what the flags say; nil where they say nothing.
func (a *ages) parse() (stale, expire *int64, err error) {
	if stale, err = age("--stale-after", a.stale, false); err != nil {
		return nil, nil, err
	}
	expire, err = age("--expire-after", a.expire, true)
	return stale, expire, err
}

func age(flag, text string, never bool) (*int64, error) {
	n := int64(-1) // the default
	switch {
	case text == "":
		return nil, nil
	case text == "default":
		return &n, nil
	case never && (text == "never" || text == "0"):
		n = 0
		return &n, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		words := "default"
		if never {
			words = "never or default"
		}
		return nil, session.Usage("%s %q: must be a time like 30m, or %s", flag, text, words)
	}
	n = int64(d)
	return &n, nil
}

func newSet(s *session.Session) *cobra.Command {
	var a ages
	cmd := &cobra.Command{
		Use:   "set <peer>",
		Short: "Change how long the data of a peer is believed without hearing from it",
		Example: "  hawser mesh set west --stale-after 1m --expire-after 2h\n" +
			"  hawser mesh set west --expire-after never",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			stale, expire, err := a.parse()
			if err != nil {
				return err
			}
			if stale == nil && expire == nil {
				return session.Usage("nothing to set: give --stale-after or --expire-after")
			}
			r, err := session.Ask(cmd.Context(), s, hawserv1.MeshClient.SetPeer, &hawserv1.SetPeerRequest{Peer: args[0], StaleAfter: stale, ExpireAfter: expire})
			if err != nil {
				return err
			}
			return printer.One(cmd.OutOrStdout(), s.Output, r, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "Set for %s, from now on.\n", args[0])
				return err
			})
		},
	}
	a.bind(cmd)
	return cmd
}
