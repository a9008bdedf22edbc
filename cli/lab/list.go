// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/cli/clicontext"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/lab"
)

// listed is a lab of the machine.
type listed struct {
	Name     string    `json:"name"`
	State    string    `json:"state"` // ready, incomplete or damaged
	Current  bool      `json:"current"`
	Clusters int       `json:"clusters"`
	Nodes    int       `json:"nodes"`
	Pods     int       `json:"pods"`
	Started  time.Time `json:"started,omitzero"`
}

func newList(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the labs of this machine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			current, err := clicontext.Current()
			if err != nil {
				return err
			}
			var rows []listed
			for _, name := range lab.Names() {
				if row, ok := o.look(cmd.Context(), name); ok {
					row.Current = current == lab.ContextName(name)
					rows = append(rows, row)
				}
			}
			return printer.Rows(cmd.OutOrStdout(), o.Output, rows, printer.Columns[listed]{
				{Header: "LAB", Cell: func(r listed) string { return r.Name }},
				{Header: "STATE", Cell: func(r listed) string { return r.State }},
				{Header: "IN USE", Cell: func(r listed) string {
					if r.Current {
						return "yes"
					}
					return ""
				}},
				{Header: "CLUSTERS", Cell: func(r listed) string { return fmt.Sprint(r.Clusters) }},
				{Header: "NODES", Cell: func(r listed) string { return fmt.Sprint(r.Nodes) }},
				{Header: "PODS", Cell: func(r listed) string { return fmt.Sprint(r.Pods) }},
				{Header: "AGE", Cell: func(r listed) string {
					if r.Started.IsZero() {
						return ""
					}
					return printer.Duration(time.Since(r.Started))
				}},
			}, "No labs.  Start one:  hawser lab up")
		},
	}
}

// look is what there is of a lab; not ok when it is only its lock.
func (o *options) look(ctx context.Context, name string) (listed, bool) {
	if st, broken := lab.Broken(name); broken {
		return listed{Name: name, State: st.State}, true
	}
	l, err := lab.Open(name)
	if err != nil {
		return listed{}, false
	}
	ctx, cancel := o.Deadline(ctx)
	defer cancel()
	st := l.Status(ctx)
	row := listed{Name: name, State: st.State, Started: st.Started, Pods: len(l.Pods()), Clusters: len(l.Clusters())}
	for _, c := range l.Clusters() {
		row.Nodes += len(c.Members)
	}
	return row, true
}
