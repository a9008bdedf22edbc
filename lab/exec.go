// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// Target resolves where a command is to run: CLUSTER/POD, a node, CLUSTER/ctl
// or fabric.
func (l *Lab) target(name string) (place, error) {
	s := l.snapshot()
	if name == "fabric" {
		return place{Netns: l.fabric(), Cgroup: s.CgroupRoot}, nil
	}
	if _, n, ok := findNode(s.Clusters, name); ok {
		return place{Netns: n.Netns, Cgroup: filepath.Join(s.CgroupRoot, n.Name)}, nil
	}
	cluster, what, ok := strings.Cut(name, "/")
	if !ok {
		return place{}, fmt.Errorf("%q is no place in lab %s: give CLUSTER/POD, CLUSTER/ctl, a node (%s) or fabric",
			name, l.lab, strings.Join(nodeNames(s.Clusters), ", "))
	}
	c, err := findCluster(s.Clusters, cluster)
	if err != nil {
		return place{}, err
	}
	if what == "ctl" {
		return place{Netns: c.Netns, Cgroup: filepath.Join(s.CgroupRoot, c.Name+"-ctl")}, nil
	}
	p, ok := l.pod(cluster, what)
	if !ok {
		return place{}, l.noSuchPod(cluster, what)
	}
	return p.Place, nil
}

// Find says whether there is such a target (see Exec); the error names those
// that there are.
func (l *Lab) Find(target string) error {
	_, err := l.target(target)
	return err
}

func (l *Lab) noSuchPod(cluster, name string) error {
	var have []string
	for _, p := range l.Pods() {
		if p.Cluster == cluster {
			have = append(have, p.Name)
		}
	}
	return fmt.Errorf("no pod %q in cluster %s, there are: %s", name, cluster, strings.Join(have, ", "))
}

func nodeNames(cs []Cluster) []string {
	var out []string
	for _, c := range cs {
		for _, n := range c.Members {
			out = append(out, n.Name)
		}
	}
	return out
}

// Start starts a prepared command at a target (see Exec); the caller waits for
// it. It sees the target's network, names and host name, and is in its cgroup.
func (l *Lab) Start(target string, cmd *exec.Cmd) error {
	p, err := l.target(target)
	if err != nil {
		return err
	}
	if err := startIn(p, cmd); err != nil {
		return fmt.Errorf("start %s in %s: %w", cmd.Args[0], target, err)
	}
	return nil
}

// Exec replaces this process by a command at a target: CLUSTER/POD, a node,
// CLUSTER/ctl or fabric. It returns only on an error. Streams, signals and the
// exit code are then the command's own.
func (l *Lab) Exec(target string, argv []string) error {
	if len(argv) == 0 {
		return errors.New("no command")
	}
	p, err := l.target(target)
	if err != nil {
		return err
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("run in %s: %w", target, err)
	}
	procs := filepath.Join(p.Cgroup, "cgroup.procs")
	if err := os.WriteFile(procs, []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return fmt.Errorf("enter cgroup of %s: %w", target, err)
	}
	return nsthread.Run(func() error {
		if err := p.enter(); err != nil {
			return err
		}
		// The program takes this thread's namespaces with it.
		err := syscall.Exec(path, argv, append(os.Environ(), "HAWSER_LAB="+l.lab, "HAWSER_LAB_TARGET="+target))
		return fmt.Errorf("run %s in %s: %w", path, target, err)
	})
}
