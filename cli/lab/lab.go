// SPDX-License-Identifier: Apache-2.0

// Package lab is `hawser lab`: trial meshes on this machine. What they are made
// of is in package lab of the module's root; here is how it is asked for and
// shown.
package lab

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/lab"
)

// options are the flags that all of the noun's commands share.
type options struct {
	*session.Session
	name string
}

// New returns the command.
func New(s *session.Session) *cobra.Command {
	o := &options{Session: s}
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Trial clusters on this machine, in network namespaces",
		Long: "A lab is a mesh of real agents and API servers on this machine: each node, control\n" +
			"plane and pod is a network namespace. It changes nothing else and leaves nothing\n" +
			"behind. It needs root.",
	}
	cmd.PersistentFlags().StringVar(&o.name, "name", lab.DefaultName, "name of the lab")
	cmd.AddCommand(newUp(o), newDown(o), newStatus(o), newExec(o), newRun(o), newRemove(o), newHosts(o), newDrill(o), newWorkload())
	return cmd
}

// open finds the lab that the flags name; its error has the right exit code.
func (o *options) open() (*lab.Lab, error) {
	l, err := lab.Open(o.name)
	if errors.Is(err, lab.ErrNoLab) {
		return nil, &session.Error{Code: session.CouldNotAsk, Err: err}
	}
	return l, err
}
