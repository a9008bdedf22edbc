// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/manifest"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
	"github.com/hawser-mesh/hawser/policy/trace"
)

func newLint(s *session.Session) *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "lint [-f FILE]",
		Short: "Point out what policy objects may not be meant to say",
		Long: "Point out what policy objects may not be meant to say: selectors that select nothing\n" +
			"in the mesh as it is now, or ever, empty lists of peers, peers of other clusters that are\n" +
			"not named, services that are not there, allows that a deny of any object takes back, denies\n" +
			"of everything or of nothing, prefixes that mean pods or nobody. Without -f it looks at the\n" +
			"objects in force. The exit code is 1 when there is something to point out.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("filename") && len(files) == 0 {
				return session.Usage("-f needs a FILE; without -f the objects in force are looked at")
			}
			k, err := learn(cmd.Context(), s, false)
			if err != nil {
				return err
			}
			k.addEnforcement(cmd.Context(), s)
			objects := k.objects
			if len(files) > 0 {
				if objects, _, err = parseFiles(cmd, files); err != nil {
					return err
				}
			}
			around, err := k.learnRanges(cmd.Context(), s)
			if err != nil {
				return err
			}
			found := trace.Lint(trace.Surroundings{Cluster: k.cluster, Scope: k.scope, Identities: k.identities, Services: k.served(), KubeAPIServers: k.kubeAPIServers,
				Others: k.beside(objects), Pods: around.pods}, objects)
			type row = trace.Finding
			err = printer.Rows(cmd.OutOrStdout(), s.Output, found, printer.Columns[row]{
				{Header: "OBJECT", Cell: func(f row) string { return f.Object }},
				{Header: "FIELD", Cell: func(f row) string { return f.Path }},
				{Header: "FINDING", Cell: func(f row) string { return f.Text }},
			}, "Nothing to point out.")
			if err == nil && len(found) > 0 {
				return session.Answer("%s", counted(len(found)))
			}
			return err
		},
	}
	manifest.Bind(cmd, &files)
	return cmd
}

func counted(findings int) string {
	if findings == 1 {
		return "1 finding"
	}
	return fmt.Sprintf("%d findings", findings)
}

// parseFiles are the objects in files, and the files' texts.
func parseFiles(cmd *cobra.Command, files []string) (out []api.Object, texts []string, err error) {
	for _, f := range files {
		text, err := manifest.Read(cmd.InOrStdin(), f)
		if err != nil {
			return nil, nil, session.Usage("%v", err)
		}
		objects, err := api.Parse([]byte(text))
		if err == nil {
			err = policy.Check(objects...)
		}
		if err != nil {
			return nil, nil, session.Usage("%s: %v", f, err)
		}
		out, texts = append(out, objects...), append(texts, text)
	}
	if len(files) == 0 {
		err = session.Usage("nothing to do: give -f FILE")
	}
	return out, texts, err
}

// pairRow is a pair for people and programs.
type pairRow struct {
	Direction string   `json:"direction"`
	Endpoints string   `json:"endpoints"`
	Peer      string   `json:"peer"`
	Opened    []string `json:"opened,omitempty"`
	Closed    []string `json:"closed,omitempty"`
}

// dryRun has the API server check objects and prints which pairs of identities
// they would open and close.
func dryRun(cmd *cobra.Command, s *session.Session, files []string) error {
	return inTime(cmd.Context(), s, func(ctx context.Context) error { return dryRunIn(ctx, cmd, s, files) })
}

func dryRunIn(ctx context.Context, cmd *cobra.Command, s *session.Session, files []string) error {
	objects, texts, err := parseFiles(cmd, files)
	if err != nil {
		return err
	}
	if err := check(ctx, s, texts); err != nil {
		return err
	}
	k, err := learn(ctx, s, true)
	if err != nil {
		return err
	}
	k.addAddresses()
	k.addEnforcement(ctx, s)
	around, err := k.learnRanges(ctx, s)
	if err != nil {
		return err
	}
	change := trace.Change{Cluster: k.cluster, Scope: k.scope, Mode: k.mode, Before: k.objects, Identities: k.identities, After: objects, Services: k.services, KubeAPIServers: k.kubeAPIServers}
	around.tell(&change)
	if trace.Names(objects) {
		s.Warn("ports by name are not in this list: which numbers they have is each workload's own")
	}
	change.After = append(change.After, k.beside(objects)...)
	pairs, err := change.Pairs(ctx)
	if err != nil {
		return fmt.Errorf("compare the objects before and after over %d identities: %w", len(k.identities), err)
	}
	most := 0
	if s.Output == printer.Table {
		most = maxNamed
	}
	var rows []pairRow
	for _, p := range pairs {
		rows = append(rows, pairRow{p.Direction.String(), p.Self.String(), p.PeerText(most), p.Opened, p.Closed})
	}
	return printer.Rows(cmd.OutOrStdout(), s.Output, rows, printer.Columns[pairRow]{
		{Header: "DIRECTION", Cell: func(r pairRow) string { return r.Direction }},
		{Header: "ENDPOINTS", Cell: func(r pairRow) string { return r.Endpoints }},
		{Header: "PEER", Cell: func(r pairRow) string { return r.Peer }},
		{Header: "OPENS", Cell: func(r pairRow) string { return cmp.Or(strings.Join(r.Opened, ", "), "–") }},
		{Header: "CLOSES", Cell: func(r pairRow) string { return cmp.Or(strings.Join(r.Closed, ", "), "–") }},
	}, "No pair of identities is opened or closed.")
}

// check has the API server refuse what it would refuse.
func check(ctx context.Context, s *session.Session, texts []string) error {
	client, conn, err := s.Mesh()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := s.Deadline(ctx)
	defer cancel()
	for _, text := range texts {
		r, err := client.ApplyPolicy(ctx, &hawserv1.ApplyPolicyRequest{Source: text, DryRun: true})
		if err != nil {
			return err
		}
		for _, w := range r.GetWarnings() {
			s.Warn("%s", w)
		}
	}
	return nil
}

// beside are the objects in force that others do not replace.
func (k *knowledge) beside(objects []api.Object) (out []api.Object) {
	for _, old := range k.objects {
		if !contains(objects, old.ID()) {
			out = append(out, old)
		}
	}
	return out
}

func contains(objects []api.Object, id string) bool {
	for _, o := range objects {
		if o.ID() == id {
			return true
		}
	}
	return false
}
