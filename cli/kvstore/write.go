// SPDX-License-Identifier: Apache-2.0

package kvstore

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/inspect"
)

const writeWarning = "Whoever owns the key may write it again at once: this is for repairs. Use the commands\n" +
	"for services, policies, nodes and peers where they can do it."

func newPut(s *session.Session) *cobra.Command {
	var write, raw bool
	cmd := &cobra.Command{
		Use:   "put KEY [RECORD]",
		Short: "Store one record, given as JSON or YAML",
		Long: "Store one record, given as JSON or YAML as `get` shows it, as an argument or on\n" +
			"standard input. It is validated first. " + writeWarning,
		Example: "  hawser kvstore put state/east/vteps/10.9.0.0%2F24 '{prefix: 10.9.0.0/24, tunnel_address: 192.0.2.7}' --write",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			key := absolute(args[0])
			if err := needWrite(write, "put changes the keyspace"); err != nil {
				return err
			}
			k, err := kvstore.ParseKey(key)
			if err != nil {
				return session.Usage("%v", err)
			}
			client, cl, err := connect(cmd, s) // may begin this process anew: standard input is read after it
			if err != nil {
				return err
			}
			defer func() { _ = client.Close() }()
			value, err := recordArgument(cmd, k, args[1:], raw)
			if err != nil {
				return session.Usage("%v%s", err, fileHint(args))
			}
			ctx, cancel := s.Deadline(cmd.Context())
			defer cancel()
			res, err := client.Txn(ctx, nil, []kvstore.Op{kvstore.Put(key, value)}, nil)
			if err != nil {
				return explain(cl.Name, err)
			}
			return report(cmd, s, map[string]any{"key": key, "revision": res.Revision}, fmt.Sprintf("Stored %s at revision %d.", short(key), res.Revision))
		},
	}
	cmd.Flags().BoolVar(&write, "write", false, "really do it")
	cmd.Flags().BoolVar(&raw, "raw", false, "store the bytes as they are, without validation")
	return cmd
}

// fileHint says how to store what is in a file, if that is what was meant.
func fileHint(args []string) string {
	if len(args) < 2 {
		return ""
	}
	if info, err := os.Stat(args[1]); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	return fmt.Sprintf("\n%s is a file; to store what is in it: hawser kvstore put %s --write < %s", args[1], args[0], args[1])
}

// recordArgument is the value of a key from the command line or standard input.
func recordArgument(cmd *cobra.Command, k kvstore.Key, args []string, raw bool) ([]byte, error) {
	var text []byte
	if len(args) > 0 {
		text = []byte(args[0])
	} else {
		var err error
		if text, err = io.ReadAll(io.LimitReader(cmd.InOrStdin(), kvstore.MaxRecord+1)); err != nil {
			return nil, fmt.Errorf("read the record: %w", err)
		}
		if len(bytes.TrimSpace(text)) == 0 && !raw {
			return nil, errNoInput
		}
	}
	if raw {
		if len(text) > kvstore.MaxRecord {
			return nil, fmt.Errorf("more than %s", printer.Bytes(kvstore.MaxRecord))
		}
		return text, nil
	}
	record, err := yaml.YAMLToJSON(text)
	if err != nil {
		return nil, fmt.Errorf("record of %s: %w", short(k.String()), err)
	}
	return inspect.EncodeJSON(k, record)
}

func newDel(s *session.Session) *cobra.Command {
	var write, below bool
	cmd := &cobra.Command{
		Use:   "del KEY",
		Short: "Remove one key, or all below a directory",
		Long:  "Remove one key, or all below a directory. " + writeWarning,
		Example: "  hawser kvstore del state/east/ips/10.1.0.7%2F32 --write\n" +
			"  hawser kvstore del state/west/ --prefix --write",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needWrite(write, "del changes the keyspace"); err != nil {
				return err
			}
			key := absolute(args[0])
			const shallowest = 2 // <subtree>/<cluster>/
			if below {
				key = directory(args)
				if strings.Count(short(key), "/") < shallowest {
					return session.Usage("--prefix %s: name at least a subtree and a cluster, such as state/west/", short(key))
				}
			}
			client, cl, err := connect(cmd, s)
			if err != nil {
				return err
			}
			defer func() { _ = client.Close() }()
			ctx, cancel := s.Deadline(cmd.Context())
			defer cancel()
			op, read := kvstore.Delete(key), kvstore.Read(key)
			op.Prefix, read.Prefix = below, below
			res, err := client.Txn(ctx, nil, []kvstore.Op{read, op}, nil)
			if err != nil {
				return explain(cl.Name, err)
			}
			n := len(res.Gets[0])
			if n == 0 {
				if strings.HasSuffix(key, "/") {
					return session.Answer("there is no key %s; all below it: --prefix", short(key))
				}
				return session.Answer("there is no key %s", short(key))
			}
			return report(cmd, s, map[string]any{"key": key, "removed": n, "revision": res.Revision},
				fmt.Sprintf("Removed %s key(s) at revision %d.", printer.Count(n), res.Revision))
		},
	}
	cmd.Flags().BoolVar(&write, "write", false, "really do it")
	cmd.Flags().BoolVar(&below, "prefix", false, "remove all keys below KEY, a directory")
	return cmd
}
