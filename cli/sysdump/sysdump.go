// SPDX-License-Identifier: Apache-2.0

// Package sysdump is `hawser sysdump`: all that the programs of a context say of
// themselves in one archive, to send to whoever helps.
//
// What is asked is in the tables of ask.go; secrets.go takes secrets out of
// everything that is stored.
package sysdump

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/cli/doctor"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/internal/version"
	"github.com/hawser-mesh/hawser/lab"
)

// maxLog is how much of a log's end is stored.
const maxLog = 8 << 20

// New returns the command.
func New(s *session.Session) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "sysdump",
		Short: "Collect what all programs say of themselves in one archive, without secrets",
		Long: "Collect what all programs of the context say of themselves in one tar.gz: states,\n" +
			"listings, metrics, what the kernel has, doctor's findings, and the logs of a lab.\n" +
			"Tokens, keys, passwords and the like are taken out; names, labels, addresses and policies stay in: read before you send.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			now := time.Now()
			root := "hawser-sysdump-" + now.UTC().Format("20060102-150405")
			if out == "" {
				out = root + ".tar.gz"
			}
			f, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return session.Usage("--out: %v", err)
			}
			a := newArchive(f, root)
			err = dump(cmd, s, a, now)
			if cerr := a.close(); err == nil {
				err = cerr
			}
			if cerr := f.Close(); err == nil {
				err = cerr
			}
			if err != nil {
				_ = os.Remove(out)
				return err
			}
			for _, m := range a.failed {
				s.Warn("%s", m)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d files\n", out, a.files)
			return err
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file to write (default: hawser-sysdump-TIME.tar.gz here)")
	return cmd
}

func dump(cmd *cobra.Command, s *session.Session, a *archive, now time.Time) error {
	c, err := s.Load()
	if err != nil {
		return err
	}
	encoded := func(name string, v any) error {
		if text, ok := v.([]byte); ok {
			return a.add(name, text, now)
		}
		var b bytes.Buffer
		if err := printer.Encode(&b, printer.JSON, v); err != nil {
			return err
		}
		return a.add(name, b.Bytes(), now)
	}
	if err := encoded("context.json", map[string]any{"version": version.String(), "time": now.UTC(), "context": c}); err != nil {
		return err
	}
	report, err := doctor.Run(cmd.Context(), s)
	if err != nil {
		return err
	}
	if err := encoded("doctor.json", report); err != nil {
		return err
	}
	for _, cl := range c.Clusters {
		if !cl.Is(s.Cluster) {
			continue
		}
		if err := askAll(cmd.Context(), s, cl, encoded, a.miss); err != nil {
			return err
		}
	}
	if err := labLogs(a, c.Name, now); err != nil {
		return err
	}
	if len(a.failed) == 0 {
		return nil
	}
	slices.Sort(a.failed)
	return a.add("missing.txt", []byte(strings.Join(a.failed, "\n")+"\n"), now)
}

// labLogs stores the logs of the lab that the context belongs to, if any.
func labLogs(a *archive, contextName string, now time.Time) error {
	name, ok := strings.CutPrefix(contextName, lab.ContextName(""))
	if !ok || name == "" {
		return nil
	}
	logs, _ := filepath.Glob(filepath.Join(lab.RunDir, name, "log", "*.log"))
	for _, path := range logs {
		data, err := os.ReadFile(path)
		if err != nil {
			a.miss(path, err)
			continue
		}
		if err := a.add("logs/"+filepath.Base(path), data[max(0, len(data)-maxLog):], now); err != nil {
			return err
		}
	}
	return nil
}
