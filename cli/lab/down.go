// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/cli/clicontext"
	"github.com/hawser-mesh/hawser/lab"
)

func newDown(o *options) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Remove a lab and prove that nothing is left of it",
		Long: "Removes a lab, also one whose start was interrupted, and looks afterwards for\n" +
			"namespaces, processes, mounts, cgroups and files of it: if there are any, it names\n" +
			"them and fails.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all {
				var errs []error
				for _, name := range lab.Names() {
					errs = append(errs, o.down(cmd, name))
				}
				return errors.Join(errs...)
			}
			name, err := o.lab()
			if err != nil {
				return err
			}
			return o.down(cmd, name)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "remove every lab of this machine")
	return cmd
}

func (o *options) down(cmd *cobra.Command, name string) error {
	start := time.Now()
	done, err := lab.Down(cmd.Context(), name)
	if err := errors.Join(err, clicontext.Remove(lab.ContextName(name))); err != nil {
		return err
	}
	if o.Quiet {
		return nil
	}
	if done == (lab.Removed{}) {
		fmt.Fprintf(cmd.ErrOrStderr(), "There is no lab %s: nothing to remove.\n", name)
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "Removed lab %s in %.1f s: %d namespaces, %d processes, %d mounts, %d cgroups; nothing is left.\n",
		name, time.Since(start).Seconds(), done.Namespaces, done.Processes, done.Mounts, done.Cgroups)
	return nil
}
