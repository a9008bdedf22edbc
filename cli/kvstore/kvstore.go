// SPDX-License-Identifier: Apache-2.0

// Package kvstore is `hawser kvstore`: looking into the keyspace. It is the only
// command that speaks to etcd itself.
package kvstore

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/cli/clicontext"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
	"github.com/hawser-mesh/hawser/kvstore/inspect"
)

// New returns the command.
func New(s *session.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kvstore",
		Short: "Look into the keyspace",
		Long: "Look into the keyspace of a cluster, as an administrator. Root on the API server's host\n" +
			"needs nothing more; from elsewhere the context has the certificate (hawser config\n" +
			"add-context). Keys are given with or without the leading " + kvstore.Root + ".",
	}
	cmd.AddCommand(newLs(s), newGet(s), newTree(s), newDiff(s), newWatch(s), newStats(s), newOrphans(s),
		newExport(s), newImport(s), newPut(s), newDel(s), newBackup(s), newRestore(s))
	return cmd
}

// connect dials the target cluster's etcd.
func connect(cmd *cobra.Command, s *session.Session) (kvstore.Client, *clicontext.Cluster, error) {
	cl, err := s.Target()
	if err != nil {
		return nil, nil, err
	}
	endpoints, tls, err := wayTo(cmd, s, cl)
	if err != nil {
		return nil, nil, &session.Error{Code: session.CouldNotAsk, Err: err}
	}
	client, err := etcd.NewClient(etcd.ClientConfig{
		Endpoints: endpoints, TLS: tls, Timeout: s.Timeout, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, nil, &session.Error{Code: session.CouldNotAsk, Err: err}
	}
	return client, cl, nil
}

// absolute completes a key or prefix given by a user.
func absolute(k string) string {
	k = strings.TrimPrefix(k, "/")
	if strings.HasPrefix(k, kvstore.Root) || k+"/" == kvstore.Root {
		return k
	}
	return kvstore.Root + k
}

func directory(args []string) string {
	if len(args) == 0 {
		return kvstore.Root
	}
	k := absolute(args[0])
	if !strings.HasSuffix(k, "/") {
		k += "/"
	}
	return k
}

func short(k string) string { return strings.TrimPrefix(k, kvstore.Root) }

func newLs(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "ls [PREFIX]",
		Short: "List keys with size, revision and content",
		Long: "List keys with size, revision and content. Without a prefix these are state/ and the\n" +
			"cluster's own part of local/.",
		Example: "  hawser kvstore ls state/east/ips",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, cl, err := connect(cmd, s)
			if err != nil {
				return err
			}
			defer func() { _ = client.Close() }()
			ctx, cancel := s.Deadline(cmd.Context())
			defer cancel()
			var entries []inspect.Entry
			var where []string
			for _, p := range prefixes(cl.Name, args) {
				below, err := inspect.List(ctx, client, p, kvstore.Limits{})
				if err != nil {
					return explain(cl.Name, err)
				}
				entries, where = append(entries, below...), append(where, short(p))
			}
			return printer.Rows(cmd.OutOrStdout(), s.Output, entries, printer.Columns[inspect.Entry]{
				{Header: "KEY", Cell: func(e inspect.Entry) string { return short(e.Key) }},
				{Header: "REVISION", Cell: func(e inspect.Entry) string { return printer.Count(e.ModRevision) }},
				{Header: "SIZE", Cell: func(e inspect.Entry) string { return printer.Bytes(uint64(e.Size)) }},
				{Header: "CONTENT", Cell: content},
			}, "No keys below "+strings.Join(where, ", ")+".")
		},
	}
}

// maxContent is the number of characters of a record in a listing.
const maxContent = 80

func content(e inspect.Entry) string {
	if e.Problem != "" {
		return "✗ " + e.Problem
	}
	text := []rune(string(e.Record))
	if len(text) > maxContent {
		return string(text[:maxContent]) + "…"
	}
	return string(text)
}

func newGet(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "get KEY",
		Short: "Show one key, decoded",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, cl, err := connect(cmd, s)
			if err != nil {
				return err
			}
			defer func() { _ = client.Close() }()
			ctx, cancel := s.Deadline(cmd.Context())
			defer cancel()
			e, err := inspect.Get(ctx, client, absolute(args[0]), kvstore.Limits{})
			if err != nil {
				return explain(cl.Name, err)
			}
			if e == nil {
				return session.Answer("there is no key %s; see: hawser kvstore ls %s", short(absolute(args[0])), filepath.Dir(short(absolute(args[0]))))
			}
			if s.Output != printer.Table {
				return printer.Encode(cmd.OutOrStdout(), s.Output, e)
			}
			return show(cmd.OutOrStdout(), e)
		},
	}
}

func show(w io.Writer, e *inspect.Entry) error {
	if err := printer.Fields(w,
		"Key", e.Key,
		"Revision", fmt.Sprintf("%d (created at %d)", e.ModRevision, e.CreateRevision),
		"Size", printer.Bytes(uint64(e.Size)),
		"Problem", e.Problem,
	); err != nil {
		return err
	}
	return printer.Encode(w, printer.YAML, e.Record)
}

func newDiff(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "diff PEER [PREFIX]",
		Short: "Compare the mirror of a peer with its origin, key by key",
		Long: "Compare the mirror of a peer with its origin, key by key, asked over the federation\n" +
			"stream. Exit code 1 when they differ. Changes on their way show as differences. PREFIX\n" +
			"is below state/PEER/ and begins with a kind of record.",
		Example: "  hawser kvstore diff west ips/",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			prefix := ""
			if len(args) == 2 {
				var err error
				if prefix, err = belowPeer(args[0], args[1]); err != nil {
					return err
				}
			}
			return diff(cmd, s, args[0], prefix)
		},
	}
}

// belowPeer is a prefix given by a user, relative to state/<peer>/.
func belowPeer(peer, prefix string) (string, error) {
	prefix = strings.TrimPrefix(absolute(prefix), kvstore.Root)
	prefix = strings.TrimPrefix(prefix, string(kvstore.State)+"/"+peer+"/")
	var kinds []string
	for _, k := range kvstore.PublicKinds {
		dir := string(k) + "/"
		if strings.HasPrefix(prefix+"/", dir) || strings.HasPrefix(dir, strings.TrimSuffix(prefix, "/")+"/") || prefix == "" {
			return prefix, nil
		}
		kinds = append(kinds, dir)
	}
	return "", session.Usage("prefix %q: begin with a kind of record: %s", prefix, strings.Join(kinds, ", "))
}

// explain makes a sentence of what the etcd of a cluster answered.
func explain(own string, err error) error {
	if errors.Is(err, kvstore.ErrDenied) {
		var readable []string
		for _, p := range inspect.Prefixes(own) {
			readable = append(readable, short(p))
		}
		return &session.Error{Code: session.No, Err: fmt.Errorf("%w; an administrator of %s may read, and with --write change most of: %s", err, own, strings.Join(readable, ", "))}
	}
	return &session.Error{Code: session.CouldNotAsk, Err: err}
}
