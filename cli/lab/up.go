// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/cli/clicontext"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/lab"
)

// killAfter is the environment variable by which tests end `lab up` with
// SIGKILL before the change of that number.
const killAfter = "HAWSER_LAB_KILL_BEFORE"

func newUp(o *options) *cobra.Command {
	var clusters, nodes int
	var file, binDir, tunnelDatapath string
	var demo, networkOnly, switchContext, shared, ipv6 bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a lab: clusters that are already meshed",
		Example: "  hawser lab up --demo\n" +
			"  hawser lab up --clusters 3 --nodes 1\n" +
			"  hawser lab up --ipv6 --demo\n" +
			"  hawser lab up --file lab.yaml",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if clusters < 1 || clusters > lab.MaxClusters {
				return session.Usage("--clusters %d: must be between 1 and %d", clusters, lab.MaxClusters)
			}
			if nodes < 1 || nodes > lab.MaxNodes {
				return session.Usage("--nodes %d: must be between 1 and %d", nodes, lab.MaxNodes)
			}
			spec := lab.NewSpec(o.name, clusters, nodes)
			if file != "" {
				if cmd.Flags().Changed("clusters") || cmd.Flags().Changed("nodes") {
					return session.Usage("--file says how many clusters and nodes there are: leave out --clusters and --nodes")
				}
				var err error
				if spec, err = lab.LoadSpec(file); err != nil {
					return &session.Error{Code: session.WrongUse, Err: err}
				}
				if spec.Name == "" || cmd.Flags().Changed("name") {
					spec.Name = o.name
				}
			}
			spec.SharedEtcd = spec.SharedEtcd || shared
			spec.IPv6 = spec.IPv6 || ipv6
			if tunnelDatapath != "" {
				spec.Agent = maps.Clone(spec.Agent)
				if spec.Agent == nil {
					spec.Agent = map[string]string{}
				}
				spec.Agent["tunnel-datapath"] = tunnelDatapath
			}
			spec, err := spec.Complete()
			if err != nil {
				return &session.Error{Code: session.WrongUse, Err: err}
			}
			bin, err := binaries(binDir)
			if err != nil {
				return err
			}
			opts := lab.Options{Binaries: bin, Demo: demo, NetworkOnly: networkOnly, Trap: trapFromEnv()}
			return o.up(cmd, spec, opts, switchContext)
		},
	}
	f := cmd.Flags()
	f.IntVar(&clusters, "clusters", 2, "number of clusters")
	f.IntVar(&nodes, "nodes", 2, "number of nodes in each")
	f.StringVarP(&file, "file", "f", "", "YAML file that describes the lab, instead of numbers")
	f.BoolVar(&shared, "shared-etcd", false, "all clusters keep their keys in one etcd, instead of federating")
	f.BoolVar(&ipv6, "ipv6", false, "give pods and services IPv6 addresses beside the IPv4 ones")
	f.StringVar(&tunnelDatapath, "tunnel-datapath", "", "who makes the tunnel's headers on all nodes: netdev, ebpf or auto (default: auto)")
	f.BoolVar(&demo, "demo", false, "deploy a service in all clusters and show it working")
	f.StringVar(&binDir, "bin-dir", "", "directory of the programs (default: where this one is)")
	f.BoolVar(&switchContext, "switch-context", true, "make the lab the CLI's current context")
	f.BoolVar(&networkOnly, "network-only", false, "make the network and start nothing in it")
	return cmd
}

func (o *options) up(cmd *cobra.Command, spec lab.Spec, opts lab.Options, switchContext bool) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	show := newProgress(cmd.ErrOrStderr(), o.Quiet)
	opts.Progress = show.update
	start := time.Now()
	l, err := lab.Up(ctx, spec, opts)
	show.end()
	if err != nil {
		if l != nil {
			err = fmt.Errorf("%w\nlogs: %s   clean up: hawser lab down --name %s", err, filepath.Join(lab.RunDir, l.Name(), "log"), l.Name())
		}
		// Also when a program of the lab did not answer, or it was interrupted.
		return &session.Error{Code: session.No, Err: err}
	}
	if opts.NetworkOnly {
		return nil
	}
	if err := publish(l, switchContext); err != nil {
		return err
	}
	if !o.Quiet {
		o.hints(cmd, l, opts.Demo, time.Since(start))
	}
	return nil
}

// hints tells what to try, with names that exist.
func (o *options) hints(cmd *cobra.Command, l *lab.Lab, demo bool, took time.Duration) {
	w := cmd.ErrOrStderr()
	path := ""
	if found, err := filepath.EvalSymlinks("/proc/self/exe"); err == nil && !inPath(filepath.Dir(found)) {
		path = fmt.Sprintf(" (export PATH=%s:$PATH)", filepath.Dir(found))
	}
	name := ""
	if l.Name() != lab.DefaultName {
		name = " --name " + l.Name()
	}
	fmt.Fprintf(w, "Ready in %.1f s.  Try%s:\n", took.Seconds(), path)
	if demo {
		fmt.Fprintf(w, "  hawser lab%s exec %s/client -- curl http://%s\n", name, l.Clusters()[0].Name, lab.ServiceName("demo", "echo"))
	}
	in := ""
	if current, err := clicontext.Current(); err != nil || current != lab.ContextName(l.Name()) {
		in = " --context " + lab.ContextName(l.Name())
	}
	fmt.Fprintf(w, "  hawser%[1]s mesh status        hawser%[1]s monitor --type drop        hawser%[1]s kvstore tree\n", in)
	fmt.Fprintf(w, "  hawser lab%s down\n", name)
}

func inPath(dir string) bool {
	for _, d := range filepath.SplitList(os.Getenv("PATH")) {
		if d == dir {
			return true
		}
	}
	return false
}

// binaries are the lab's programs: below dir, or beside this one.
func binaries(dir string) (lab.Binaries, error) {
	if dir == "" {
		self, err := os.Executable()
		if err != nil {
			return lab.Binaries{}, fmt.Errorf("find the programs: %w", err)
		}
		if self, err = filepath.EvalSymlinks(self); err != nil {
			return lab.Binaries{}, fmt.Errorf("find the programs: %w", err)
		}
		dir = filepath.Dir(self)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return lab.Binaries{}, fmt.Errorf("find the programs: %w", err)
	}
	return lab.BinariesIn(abs), nil
}

// publish lets the CLI find the lab, and asks it from now on unless another
// context is to stay the current one.
func publish(l *lab.Lab, switchContext bool) error {
	c := &clicontext.Context{Name: lab.ContextName(l.Name())}
	for _, cl := range l.Clusters() {
		entry := clicontext.Cluster{
			Name: cl.Name, Socket: cl.Socket,
			Etcd: &clicontext.Etcd{Endpoint: cl.EtcdEndpoint(), TLSDir: cl.AdminTLS, Netns: cl.Netns},
		}
		for _, n := range cl.Members {
			entry.Nodes = append(entry.Nodes, clicontext.Node{Name: n.Name, Socket: n.Socket})
		}
		c.Clusters = append(c.Clusters, entry)
	}
	previous, err := clicontext.Current()
	if err != nil {
		return err
	}
	if err := clicontext.Write(c); err != nil {
		return err
	}
	if switchContext || previous == "" {
		return clicontext.Use(c.Name)
	}
	return nil
}

func trapFromEnv() func(int, string) {
	n, err := strconv.Atoi(os.Getenv(killAfter))
	if err != nil || n <= 0 {
		return nil
	}
	return func(i int, what string) {
		if i == n {
			fmt.Fprintf(os.Stderr, "killed before change %d: %s\n", i, what)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // until the signal arrives
		}
	}
}
