// SPDX-License-Identifier: Apache-2.0

// Package lab is `hawser lab`: trial meshes on this machine. What they are made
// of is in package lab of the module's root; here is how it is asked for and
// shown.
package lab

import (
	"errors"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/cli/clicontext"
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
	cmd.PersistentFlags().StringVar(&o.name, "name", "", "name of the lab (default: the context's, if it is a lab's, else "+lab.DefaultName+"; a new one: "+lab.DefaultName+")")
	cmd.AddCommand(newUp(o), newDown(o), newList(o), newStatus(o), newExec(o), newRun(o), newRemove(o), newDrill(o), newWorkload())
	return cmd
}

// lab is the name of the lab that a command is about: --name, else the lab of
// the context that --context names or that is in use.
func (o *options) lab() (string, error) {
	if o.name != "" {
		return o.name, nil
	}
	context, err := o.contextName()
	if err != nil {
		return "", &session.Error{Code: session.CouldNotAsk, Err: err}
	}
	name, ok := lab.OfContext(context)
	switch {
	case ok:
		return name, nil
	case o.Context != "":
		return "", session.Usage("context %q is not a lab's: give --name, or the --context of a lab (%s)", o.Context, lab.ContextName(lab.DefaultName))
	}
	return lab.DefaultName, nil
}

func (o *options) contextName() (string, error) {
	switch {
	case o.Context == "":
		return clicontext.Current()
	case filepath.Base(o.Context) != o.Context:
		c, err := clicontext.Load(o.Context) // a file
		if err != nil {
			return "", err
		}
		return c.Name, nil
	}
	return o.Context, nil
}

// open finds the lab that the flags name; its error has the right exit code.
func (o *options) open() (*lab.Lab, error) {
	name, err := o.lab()
	if err != nil {
		return nil, err
	}
	l, err := lab.Open(name)
	if errors.Is(err, lab.ErrNoLab) {
		return nil, &session.Error{Code: session.CouldNotAsk, Err: err}
	}
	return l, err
}
