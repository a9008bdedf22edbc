// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line `hawser`: a package a noun, put together here.
package cli

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/cli/bpfmap"
	"github.com/hawser-mesh/hawser/cli/cleanup"
	"github.com/hawser-mesh/hawser/cli/config"
	"github.com/hawser-mesh/hawser/cli/endpoint"
	"github.com/hawser-mesh/hawser/cli/identity"
	"github.com/hawser-mesh/hawser/cli/ipcache"
	"github.com/hawser-mesh/hawser/cli/kvstore"
	"github.com/hawser-mesh/hawser/cli/lab"
	"github.com/hawser-mesh/hawser/cli/mesh"
	"github.com/hawser-mesh/hawser/cli/monitor"
	"github.com/hawser-mesh/hawser/cli/node"
	"github.com/hawser-mesh/hawser/cli/policy"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/service"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/cli/status"
	"github.com/hawser-mesh/hawser/cli/sysdump"
	"github.com/hawser-mesh/hawser/cli/vtep"
	"github.com/hawser-mesh/hawser/internal/version"
)

// New returns the root command. name is how the program was called: a copy or
// link named kubectl-hawser makes it the plugin `kubectl hawser`.
func New(name string) *cobra.Command {
	s := &session.Session{}
	root := &cobra.Command{
		Use:           "hawser",
		Short:         "Connect clusters, run services that span them, see every flow and drop",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	if filepath.Base(name) == "kubectl-hawser" {
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl hawser"}
	}
	s.Bind(root)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return session.Usage("%v\nsee: %s --help", err, cmd.CommandPath())
	})
	root.AddGroup(
		&cobra.Group{ID: "use", Title: "Use the mesh:"},
		&cobra.Group{ID: "look", Title: "Look in:"},
		&cobra.Group{ID: "try", Title: "Try it:"},
		&cobra.Group{ID: "other", Title: "Other:"},
	)
	group(root, "use", mesh.New(s), service.New(s), policy.New(s))
	group(root, "look", status.New(s), monitor.New(s), endpoint.New(s), identity.New(s), node.New(s),
		vtep.New(s), ipcache.New(s), bpfmap.New(s), kvstore.New(s))
	group(root, "try", lab.New(s))
	group(root, "other", config.New(s), sysdump.New(s), cleanup.New(s), newVersion(s))
	root.SetHelpCommandGroupID("other")
	root.SetCompletionCommandGroupID("other")
	checkArguments(root)
	return root
}

func group(root *cobra.Command, id string, cmds ...*cobra.Command) {
	for _, c := range cmds {
		c.GroupID = id
		root.AddCommand(c)
	}
}

// checkArguments makes wrong arguments wrong use, and a bare or unknown
// subcommand an error instead of a silent help text.
func checkArguments(cmd *cobra.Command) {
	if cmd.HasSubCommands() && cmd.RunE == nil && cmd.Run == nil {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return session.Usage("unknown command %q for %q%s", args[0], cmd.CommandPath(), suggestions(cmd, args[0]))
		}
	} else if inner := cmd.Args; inner != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			// What cobra finds missing later on would be no wrong use.
			err := inner(cmd, args)
			if err != nil && strings.HasPrefix(err.Error(), "unknown command") { // as cobra calls it
				err = fmt.Errorf("%s takes no arguments: %q", cmd.CommandPath(), args)
			}
			if err = errors.Join(err, cmd.ValidateRequiredFlags()); err != nil {
				return session.Usage("%v\nusage: %s", err, cmd.UseLine())
			}
			return nil
		}
	}
	for _, c := range cmd.Commands() {
		checkArguments(c)
	}
}

func suggestions(cmd *cobra.Command, typed string) string {
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(typed); len(near) > 0 {
		return "; did you mean " + strings.Join(near, ", ") + "?"
	}
	return fmt.Sprintf("; see: %s --help", cmd.CommandPath())
}

// Report prints an error as a user reads it and returns the exit code.
func Report(w io.Writer, err error) int {
	code := session.ExitCode(err)
	var quiet *session.Exit
	if errors.As(err, &quiet) {
		return quiet.Code
	}
	if err != nil {
		text := strings.ReplaceAll(session.Message(err), "\n", "\n       ")
		fmt.Fprintf(w, "error: %s\n", text)
	}
	return code
}

func newVersion(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s.Output != printer.Table {
				return printer.Encode(cmd.OutOrStdout(), s.Output, map[string]string{"version": version.String()})
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "hawser", version.String())
			return err
		},
	}
}
