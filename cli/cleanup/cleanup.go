// SPDX-License-Identifier: Apache-2.0

// Package cleanup is `hawser cleanup`: it removes what an agent leaves on the
// host where it is called, and proves it. What is removed is agent/cleanup's to
// know.
package cleanup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/agent/cleanup"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

// pinRoot has a directory of pins for each agent, by its node's name.
const pinRoot = "/sys/fs/bpf/hawser"

type options struct {
	cleanup.Config
	kept                       cleanup.Config // directories that keep their files
	state, credentials, dryRun bool
}

// New returns the command.
func New(s *session.Session) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove all that an agent leaves on this host, and prove it",
		Long: "Remove all that an agent leaves on this host: programs, maps and their pins, pods'\n" +
			"devices, the host device with its routes, hooks on the cgroup, the socket. Its pods lose\n" +
			"their network. Afterwards it looks again, in the kernel too; the exit code is 1 if\n" +
			"anything is left, and each is told with who holds it. Its files are listed as kept\n" +
			"without --state and --credentials.\n\n" +
			"It refuses while an agent runs, and where programs of an agent are on a device or on the\n" +
			"cgroup that are not pinned in the given --pin-path: it names them, and which process has\n" +
			"them open. What the node has in the keyspace stays, as does its right to be a\n" +
			"node, until: hawser node forget NODE",
		Example: "  hawser cleanup --dry-run\n  hawser cleanup --state --credentials     # nothing stays on this host",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return run(cmd, s, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.PinPath, "pin-path", "", "the agent's --pin-path (default: that of --node, or the only one below "+pinRoot+")")
	f.StringVar(&o.Socket, "socket", "/run/hawser/agent.sock", "the agent's --socket")
	f.StringVar(&o.Cgroup, "cgroup-root", "", "the agent's --cgroup-root (default: the root of cgroup2, where this is the host's network, and the cgroups that this command is in)")
	f.StringVar(&o.StateDir, "state-dir", "/var/lib/hawser", "the agent's --state-dir")
	f.StringVar(&o.TLSDir, "tls-dir", "/etc/hawser/tls", "the agent's --tls-dir")
	f.BoolVar(&o.state, "state", false, "remove the agent's files in --state-dir too")
	f.BoolVar(&o.credentials, "credentials", false, "remove the node's certificate and enrolment too; it needs a new token then")
	f.BoolVar(&o.dryRun, "dry-run", false, "only list what would be removed")
	f.BoolVar(&o.Force, "force", false, "also while an agent runs; programs that are pinned elsewhere are taken off, and their pins stay there")
	return cmd
}

func run(cmd *cobra.Command, s *session.Session, o options) error {
	if err := o.complete(s.Node); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return &session.Error{Code: session.CouldNotAsk, Err: errors.New("what an agent leaves is in the kernel: run it as root")}
	}
	if s.Node != "" {
		o.warnUnknown(s)
	}
	if o.dryRun {
		items, err := cleanup.Find(o.Config)
		if err != nil {
			return err
		}
		if err := cleanup.Refusal(cmd.Context(), o.Config); err != nil && !o.Force {
			s.Warn("without --force it would be refused: %v", err)
		}
		return list(cmd, s, items, o.kept)
	}
	items, err := cleanup.Run(cmd.Context(), o.Config)
	var running *cleanup.RunningError
	if errors.As(err, &running) {
		return session.Answer("%v\nstop it first (its pods lose their network), or give --force; nothing was removed", running)
	}
	var elsewhere *cleanup.ElsewhereError
	if errors.As(err, &elsewhere) {
		return session.Answer("%v\nthey are pinned elsewhere: give --pin-path and --socket as that agent has them, "+
			"or --force to take them off where their pins are lost; nothing was removed", elsewhere)
	}
	if lerr := list(cmd, s, items, o.kept); lerr != nil {
		return lerr
	}
	if err != nil {
		return session.Answer("not all could be removed\n%v", err)
	}
	return nil
}

// complete fills in which agent's, and leaves out what is not to be removed.
func (o *options) complete(node string) error {
	paths := map[string]*string{"--pin-path": &o.PinPath, "--cgroup-root": &o.Cgroup, "--socket": &o.Socket, "--state-dir": &o.StateDir, "--tls-dir": &o.TLSDir}
	var errs []error
	for flag, path := range paths {
		if !filepath.IsAbs(*path) && (*path != "" || flag != "--pin-path" && flag != "--cgroup-root") {
			errs = append(errs, fmt.Errorf("%s %q: must be an absolute path", flag, *path))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return session.Usage("%v", err)
	}
	if !o.state {
		o.kept.StateDir, o.StateDir = o.StateDir, ""
	}
	if !o.credentials {
		o.kept.TLSDir, o.TLSDir = o.TLSDir, ""
	}
	if o.PinPath != "" {
		return nil
	}
	if strings.Contains(node, "/") || node == "." || node == ".." {
		return session.Usage("--node %q is no node's name", node)
	}
	if node != "" {
		o.PinPath = filepath.Join(pinRoot, node)
		return nil
	}
	have, _ := filepath.Glob(filepath.Join(pinRoot, "*")) // the pattern is well formed
	if len(have) > 1 {
		return session.Usage("this host has pins of several agents: give --pin-path, one of %s", strings.Join(have, ", "))
	}
	o.PinPath = filepath.Join(pinRoot, "none")
	if len(have) == 1 {
		o.PinPath = have[0]
	}
	return nil
}

// warnUnknown says that a node that was named has no pins here, if others do: that
// nothing is found may be a slip.
func (o *options) warnUnknown(s *session.Session) {
	have, _ := filepath.Glob(filepath.Join(pinRoot, "*")) // the pattern is well formed
	if _, err := os.Stat(o.PinPath); err != nil && len(have) > 0 {
		s.Warn("there are no pins in %s; there are: %s", o.PinPath, strings.Join(have, ", "))
	}
}

// list shows the items, and the files in kept's directories with what removes them.
func list(cmd *cobra.Command, s *session.Session, items []cleanup.Item, kept cleanup.Config) error {
	type row = cleanup.Item
	files, err := cleanup.Files(kept)
	if err != nil {
		return err
	}
	for _, i := range files {
		i.Result, i.Why = cleanup.Kept, "--"+i.Kind+" removes it"
		items = append(items, i)
	}
	return printer.Rows(cmd.OutOrStdout(), s.Output, items, printer.Columns[row]{
		{Header: "KIND", Cell: func(i row) string { return i.Kind }},
		{Header: "NAME", Cell: func(i row) string { return i.Name }},
		{Header: "ID", Cell: func(i row) string { return id(i.ID) }},
		{Header: "RESULT", Cell: func(i row) string { return strings.TrimSuffix(i.Result+": "+i.Why, ": ") }},
	}, "There is nothing of an agent on this host.")
}

func id(n uint32) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}
