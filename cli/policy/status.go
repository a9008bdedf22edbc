// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/clicontext"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

// statusRow is how far a node's policies have come.
type statusRow struct {
	Node     string   `json:"node"`
	Enforced int      `json:"enforced"` // objects
	Stored   int      `json:"stored"`
	Missing  []string `json:"missing,omitempty"` // objects not enforced as stored, namespace/name
	Deleted  []string `json:"deleted,omitempty"` // objects still enforced and gone
	// Problems are what stands in the way, of the node or of an object by its name.
	Problems []string `json:"problems,omitempty"`
	// Silent is set when the node's agent was asked and does not answer: the rest is
	// what it told the API server, and what the kernel enforces now is not known.
	Silent bool `json:"silent"`
}

func (r statusRow) done() bool {
	return len(r.Missing) == 0 && len(r.Deleted) == 0 && len(r.Problems) == 0 && !r.Silent
}

// missing is why a node is behind, for people: an object once, with its problem.
func (r statusRow) missing() string {
	why := slices.DeleteFunc(slices.Clone(r.Missing), func(id string) bool {
		return slices.ContainsFunc(r.Problems, func(p string) bool { return strings.HasPrefix(p, id+": ") })
	})
	why = append(why, r.Problems...)
	for _, id := range r.Deleted {
		why = append(why, id+" (deleted)")
	}
	if r.Silent {
		why = append(why, session.ErrSilent.Error())
	}
	return cmp.Or(strings.Join(why, ", "), "–")
}

const (
	// waitPoll is how often nodes are asked with --wait.
	waitPoll = 100 * time.Millisecond
	// lastRound is how long the last time of asking may take: when --timeout ends
	// soon, agents that answer must not seem silent. Of it they get a third.
	lastRound = 3 * time.Second
)

func newStatus(s *session.Session) *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show on which nodes the stored policies are enforced",
		Long: "Show for each node of the cluster whether its kernel enforces every policy object as\n" +
			"it is stored now. Of nodes whose agents the context does not name, it is what they last\n" +
			"told the API server: not what they still enforce of deleted objects. So it is of a node\n" +
			"whose agent does not answer, with that beside it (in -o json and yaml: silent); what its\n" +
			"kernel enforces is what its agent last wrote. With --wait it returns when all nodes do,\n" +
			"or when --timeout has passed; agents that do not answer get a third of what is left, each\n" +
			"time. The exit code is 1 when a node is behind, or its agent does not answer.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ask := rollout
			if wait {
				ask = settled
			}
			rows, err := ask(cmd.Context(), s)
			if err != nil {
				return err
			}
			err = printer.Rows(cmd.OutOrStdout(), s.Output, rows, printer.Columns[statusRow]{
				{Header: "NODE", Cell: func(r statusRow) string { return r.Node }},
				{Header: "ENFORCED", Cell: func(r statusRow) string { return fmt.Sprintf("%d of %d", r.Enforced, r.Stored) }},
				{Header: "MISSING", Cell: statusRow.missing},
			}, "No nodes.")
			if err == nil && slices.ContainsFunc(rows, behind) {
				return session.Answer("not enforced everywhere")
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until all nodes enforce what is stored")
	return cmd
}

func behind(r statusRow) bool { return !r.done() }

// settled asks again and again until no node is behind, at most until --timeout
// has passed. An agent that does not answer leaves time to ask the others again.
func settled(ctx context.Context, s *session.Session) ([]statusRow, error) {
	round := func(end time.Time) ([]statusRow, error) {
		ctx, cancel := context.WithDeadline(ctx, end)
		defer cancel()
		return rollout(ctx, s)
	}
	deadline := time.Now().Add(s.Timeout)
	rows, err := round(deadline)
	for (err == nil && slices.ContainsFunc(rows, behind) || errors.Is(err, session.ErrSilent)) && time.Now().Before(deadline) {
		time.Sleep(waitPoll)
		end := deadline
		if last := time.Now().Add(min(s.Timeout, lastRound)); last.After(end) {
			end = last
		}
		rows, err = round(end)
	}
	return rows, err
}

func rollout(ctx context.Context, s *session.Session) ([]statusRow, error) {
	stored, err := list(ctx, s)
	if err != nil {
		return nil, err
	}
	rows, err := session.Gather(ctx, s, func(ctx context.Context, n session.NodeConn) ([]statusRow, error) {
		r, err := n.Status(ctx, &hawserv1.StatusRequest{})
		if err != nil {
			return nil, err
		}
		return []statusRow{compare(r, stored.GetPolicies())}, nil
	})
	asked, terr := s.Target()
	if terr != nil {
		return nil, terr
	}
	if err == nil || errors.Is(err, session.ErrNoAgents) {
		rows, err = append(rows, reported(stored, s.Node, asked.Nodes, rows)...), nil
	}
	slices.SortFunc(rows, func(a, b statusRow) int { return cmp.Compare(a.Node, b.Node) })
	return rows, err
}

// reported is how far nodes have come by what they told the API server: node, or
// all, but those that have told it themselves. Those that were asked and did not
// answer are silent.
func reported(stored *hawserv1.ListPoliciesResponse, node string, asked []clicontext.Node, told []statusRow) []statusRow {
	all := len(stored.GetPolicies())
	rows := map[string]statusRow{}
	for _, n := range stored.GetNodes() {
		row := statusRow{Node: n.GetNode(), Stored: all, Missing: slices.Clone(n.GetMissing())}
		for _, id := range slices.Sorted(maps.Keys(n.GetProblems())) {
			if !slices.Contains(row.Missing, id) {
				row.Missing = append(row.Missing, id)
			}
			row.Problems = append(row.Problems, id+": "+n.GetProblems()[id])
		}
		row.Enforced = all - len(row.Missing)
		rows[n.GetNode()] = row
	}
	for _, a := range asked {
		if a.Name == "" {
			continue // this host's only one: it has answered, or nothing is shown
		}
		row, known := rows[a.Name]
		if !known {
			row = statusRow{Node: a.Name, Stored: all}
		}
		row.Silent = true
		rows[a.Name] = row
	}
	for _, r := range told {
		delete(rows, r.Node)
	}
	maps.DeleteFunc(rows, func(name string, _ statusRow) bool { return node != "" && name != node })
	return slices.Collect(maps.Values(rows))
}

// problemOf is what a node says of an object that it enforces in part.
func problemOf(r *hawserv1.NodeStatusReport, id string) string {
	for _, p := range r.GetProblems() {
		if p.GetObject() == "policy "+id {
			return p.GetProblem() + " (" + p.GetFix() + ")"
		}
	}
	return ""
}

// compare finds what a node does not enforce as it is stored.
func compare(r *hawserv1.NodeStatusReport, stored []*hawserv1.PolicyInfo) statusRow {
	row := statusRow{Node: r.GetNode(), Stored: len(stored)}
	has := r.GetPolicies()
	wanted := map[string]bool{}
	for _, p := range stored {
		id := p.GetNamespace() + "/" + p.GetName()
		wanted[id] = true
		switch problem := problemOf(r, id); {
		case has[id] != p.GetRevision():
			row.Missing = append(row.Missing, id)
		case problem != "":
			row.Missing = append(row.Missing, id)
			row.Problems = append(row.Problems, id+": "+problem)
		default:
			row.Enforced++
		}
	}
	for id := range has {
		if !wanted[id] {
			row.Deleted = append(row.Deleted, id)
		}
	}
	slices.Sort(row.Deleted)
	if row.done() && !r.GetPoliciesSettled() {
		row.Problems = []string{"being written to the kernel"}
		for _, t := range r.GetTables() {
			if first, _, _ := strings.Cut(t.GetLastError(), "\n"); first != "" {
				row.Problems = append(row.Problems, "table "+t.GetName()+": "+first)
			}
		}
	}
	return row
}
