// SPDX-License-Identifier: Apache-2.0

package kvstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/kvstore/inspect"
)

func newExport(s *session.Session) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "export [PREFIX]",
		Short: "Write keys as JSON lines",
		Long: "Write keys as JSON lines, all at one revision: each with its value as it is stored\n" +
			"and decoded. Leased keys and the store's incarnation, positions and markers are left\n" +
			"out. The export of private/ holds secrets. For a copy of all that etcd stores, see:\n" +
			"hawser kvstore backup.",
		Example: "  hawser kvstore export --file east.jsonl\n" +
			"  hawser kvstore export local/east/policies | jq -r .key",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, cl, err := connect(cmd, s)
			if err != nil {
				return err
			}
			defer func() { _ = client.Close() }()
			from := inspect.Prefixes(cl.Name)
			if len(args) > 0 {
				from = []string{directory(args)}
			}
			var n int
			write := func(w io.Writer) (err error) {
				n, err = inspect.Export(cmd.Context(), client, w, cl.Name, from, time.Now())
				return err
			}
			if file == "" {
				if err := write(cmd.OutOrStdout()); err != nil {
					return explain(cl.Name, err)
				}
				return nil
			}
			if err := replaceFile(file, write); err != nil {
				return explain(cl.Name, err)
			}
			return report(cmd, s, map[string]any{"file": file, "keys": n}, fmt.Sprintf("Wrote %s keys to %s.", printer.Count(n), file))
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "file to write instead of standard output")
	return cmd
}

// replaceFile writes a file that only the owner may read, and puts it in place
// when it is whole.
func replaceFile(path string, write func(io.Writer) error) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // made 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	if err = write(tmp); err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// report prints what a command did, in the output format asked for.
func report(cmd *cobra.Command, s *session.Session, v any, text string) error {
	if s.Output != printer.Table {
		return printer.Encode(cmd.OutOrStdout(), s.Output, v)
	}
	if s.Quiet {
		return nil
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}

// needWrite refuses a command that changes the keyspace unless --write is given.
func needWrite(write bool, what string) error {
	if write {
		return nil
	}
	return session.Usage("%s: give --write to do it; nothing was changed", what)
}

func newImport(s *session.Session) *cobra.Command {
	var write bool
	var o inspect.ImportOptions
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Store the keys of an export",
		Long: "Store the keys of an export; every line is checked before anything is written. The\n" +
			"store is another history afterwards: it gets a new incarnation, its markers are\n" +
			"removed, the API server begins anew on it, and agents and peers read all of it\n" +
			"again. Keys of agents that are present\n" +
			"and identities that exist stay as they are: an export may be older than they are.\n" +
			"FILE may be - for standard input.",
		Example: "  hawser kvstore import east.jsonl --dry-run\n" +
			"  hawser kvstore import east.jsonl --write",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !o.DryRun {
				if err := needWrite(write, "import changes the keyspace and names it anew"); err != nil {
					return err
				}
			}
			client, cl, err := connect(cmd, s)
			if err != nil {
				return err
			}
			defer func() { _ = client.Close() }()
			in := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return session.Usage("%v", err)
				}
				defer f.Close()
				in = f
			}
			h, kvs, err := inspect.Parse(in, cl.Name)
			if err == nil && h.Cluster != cl.Name {
				err = fmt.Errorf("it is an export of cluster %s, not of %s", h.Cluster, cl.Name)
			}
			if err != nil {
				return session.Answer("cannot import %s:\n%w\nnothing was written", args[0], err)
			}
			res, err := inspect.Import(cmd.Context(), client, cl.Name, kvs, o)
			if err != nil {
				return explain(cl.Name, err)
			}
			return report(cmd, s, res, imported(res, o.DryRun))
		},
	}
	f := cmd.Flags()
	f.BoolVar(&write, "write", false, "really do it")
	f.BoolVar(&o.Replace, "replace", false, "also remove services, policies, peers and other records of API server and operators that the export does not have")
	f.BoolVar(&o.DryRun, "dry-run", false, "say what would change, and change nothing")
	return cmd
}

func imported(r inspect.Imported, dry bool) string {
	verb := "Wrote"
	if dry {
		verb = "Would write"
	}
	parts := []string{fmt.Sprintf("%s %s keys", verb, printer.Count(r.Written))}
	for _, p := range []struct {
		n    int
		what string
	}{{r.Removed, "removed"}, {r.Unchanged, "unchanged"}, {r.LeftToOwner, "left to their owners"}, {r.Skipped, "skipped"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%s %s", printer.Count(p.n), p.what))
		}
	}
	text := strings.Join(parts, ", ") + "."
	if r.Incarnation != "" {
		text += " New incarnation: " + r.Incarnation + ". The API server begins anew on it, which takes a moment; agents and peers read all of it again."
	}
	return text
}

// errNoInput tells a forgotten argument from an empty record.
var errNoInput = errors.New("no record: give it as an argument or on standard input")
