// SPDX-License-Identifier: Apache-2.0

package kvstore

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/inspect"
)

func newTree(s *session.Session) *cobra.Command {
	var depth int
	cmd := &cobra.Command{
		Use:   "tree [PREFIX]",
		Short: "Sum up the keyspace by subtree, cluster and kind",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if depth < 1 || depth > 3 {
				return session.Usage("--depth %d: must be 1 (subtrees), 2 (clusters) or 3 (kinds)", depth)
			}
			client, cl, err := connect(cmd, s)
			if err != nil {
				return err
			}
			defer func() { _ = client.Close() }()
			ctx, cancel := s.Deadline(cmd.Context())
			defer cancel()
			var branches []inspect.Branch
			for _, p := range prefixes(cl.Name, args) {
				b, err := inspect.Tree(ctx, client, p, kvstore.Limits{})
				if err != nil {
					return explain(cl.Name, err)
				}
				branches = append(branches, b...)
			}
			if s.Output != printer.Table {
				return printer.Encode(cmd.OutOrStdout(), s.Output, branches)
			}
			mirrored, err := mirrors(ctx, client, cl.Name)
			if err != nil {
				return explain(cl.Name, err)
			}
			return drawTree(cmd.OutOrStdout(), branches, depth, func(cluster string) string {
				switch {
				case cluster == cl.Name:
					return ""
				case mirrored[cluster]:
					return "   mirror"
				}
				return "   no mirror of ours: of a cluster that shares this etcd, or left over"
			})
		},
	}
	cmd.Flags().IntVar(&depth, "depth", 3, "1 for subtrees, 2 for clusters, 3 for kinds")
	return cmd
}

// prefixes are what an administrator may read when nothing else is asked for.
func prefixes(cluster string, args []string) []string {
	if len(args) > 0 {
		return []string{directory(args)}
	}
	return []string{kvstore.SubtreePrefix(kvstore.State), kvstore.Prefix(kvstore.Local, cluster)}
}

// node is a level of the drawn tree.
type node struct {
	name     string
	keys     int
	bytes    int64
	bad      int
	newest   int64
	children []*node
}

func (n *node) child(name string) *node {
	for _, c := range n.children {
		if c.name == name {
			return c
		}
	}
	c := &node{name: name}
	n.children = append(n.children, c)
	return c
}

func (n *node) add(b inspect.Branch) {
	n.keys, n.bytes, n.bad, n.newest = n.keys+b.Keys, n.bytes+b.Bytes, n.bad+b.Bad, max(n.newest, b.Newest)
}

// mirrors are the clusters whose keys the API server of own writes here: its
// peers. Clusters that share its etcd are none.
func mirrors(ctx context.Context, c kvstore.Client, own string) (map[string]bool, error) {
	out := map[string]bool{}
	_, err := inspect.Walk(ctx, c, kvstore.KindPrefix(kvstore.Private, own, kvstore.KindPeerView), func(kv kvstore.KV) error {
		if k, err := kvstore.ParseKey(kv.Key); err == nil && len(k.Names) > 0 {
			out[k.Names[0]] = true
		}
		return nil
	})
	return out, err
}

func drawTree(w io.Writer, branches []inspect.Branch, depth int, whose func(cluster string) string) error {
	root := &node{}
	for _, b := range branches {
		sub := root.child(b.Subtree)
		cluster := sub.child(b.Cluster)
		kind := cluster.child(b.Kind)
		for _, n := range []*node{sub, cluster, kind} {
			n.add(b)
		}
	}
	if len(root.children) == 0 {
		_, err := fmt.Fprintln(w, "No keys.")
		return err
	}
	for _, sub := range root.children {
		fmt.Fprintf(w, "%s/%s\n", sub.name, totals(sub, depth == 1))
		if depth == 1 {
			continue
		}
		for i, c := range sub.children {
			mirror := ""
			if sub.name == string(kvstore.State) {
				mirror = whose(c.name)
			}
			bar, indent := "├─", "│ "
			if i == len(sub.children)-1 {
				bar, indent = "└─", "  "
			}
			fmt.Fprintf(w, "%s %s/%s%s\n", bar, c.name, totals(c, true), mirror)
			if depth == 3 {
				fmt.Fprintf(w, "%s └─ %s\n", indent, kinds(c))
			}
		}
	}
	return nil
}

func totals(n *node, show bool) string {
	if !show {
		return ""
	}
	text := fmt.Sprintf("   newest revision %s   %s keys   %s", printer.Count(n.newest), printer.Count(n.keys), printer.Bytes(uint64(n.bytes)))
	if n.bad > 0 {
		text += fmt.Sprintf("   ✗ %d not believed", n.bad)
	}
	return text
}

func kinds(c *node) string {
	parts := make([]string, len(c.children))
	for i, k := range c.children {
		parts[i] = fmt.Sprintf("%s %s", k.name, printer.Count(k.keys))
	}
	return strings.Join(parts, " · ")
}

func diff(cmd *cobra.Command, s *session.Session, peer, prefix string) error {
	client, conn, err := s.Mesh()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(cmd.Context(), max(s.Timeout, time.Minute))
	defer cancel()
	rows, compared, err := differences(ctx, client, peer, prefix)
	if err != nil {
		return err
	}
	type row = *hawserv1.DiffRow
	if err := printer.List(cmd.OutOrStdout(), s.Output, rows, printer.Columns[row]{
		{Header: "KEY", Cell: row.GetKey},
		{Header: "DIFFERENCE", Cell: row.GetDifference},
	}, fmt.Sprintf("No differences: %s keys compared.", printer.Count(compared))); err != nil {
		return err
	}
	if n := len(rows); n > 0 {
		return session.Answer("%d of %d keys differ", n, compared)
	}
	return nil
}

// differences asks for one page after the other.
func differences(ctx context.Context, client hawserv1.MeshClient, peer, prefix string) (rows []*hawserv1.DiffRow, compared uint64, err error) {
	for after := ""; ; {
		r, err := client.Diff(ctx, &hawserv1.MeshDiffRequest{Peer: peer, Prefix: prefix, After: after})
		if err != nil {
			return nil, 0, err
		}
		rows, compared = append(rows, r.GetRows()...), compared+r.GetCompared()
		if after = r.GetNext(); after == "" {
			return rows, compared, nil
		}
	}
}
