// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/lab"
)

func newStatus(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "What runs in a lab, and what does not",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, err := o.lab()
			if err != nil {
				return err
			}
			st, broken := lab.Broken(name)
			if !broken {
				l, err := o.open()
				if err != nil {
					return err
				}
				ctx, cancel := o.Deadline(cmd.Context())
				defer cancel()
				st = l.Status(ctx)
			}
			if o.Output != printer.Table {
				if err := printer.Encode(cmd.OutOrStdout(), o.Output, st); err != nil {
					return err
				}
			} else {
				printStatus(cmd, st)
			}
			if st.State != "ready" {
				return session.Answer("lab %s is %s", st.Name, st.State)
			}
			return nil
		},
	}
}

func printStatus(cmd *cobra.Command, st lab.Status) {
	up := ""
	if !st.Started.IsZero() {
		up = ", started " + printer.Duration(time.Since(st.Started)) + " ago"
	}
	fmt.Fprintf(cmd.OutOrStdout(), "Lab %s: %s%s\n\n", st.Name, st.State, up)
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join([]string{"KIND", "NAME", "STATE", "ADDRESS", "PID", "DETAIL"}, "\t"))
	for _, r := range st.Rows {
		fmt.Fprintln(w, strings.Join([]string{r.Kind, r.Name, r.State, r.Address, strconv.Itoa(r.PID), r.Detail}, "\t"))
	}
	_ = w.Flush() // stdout: nobody is left to tell
	for _, p := range st.Problem {
		fmt.Fprintln(cmd.ErrOrStderr(), "  "+p)
	}
}
