// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// The etcd that all clusters share, when the spec says so: a process in a
// namespace of its own beside the first cluster's API server, with its own CA,
// which certifies every cluster's programs to it.

func (b *builder) sharedEtcdCgroup() string {
	return filepath.Join(b.state.CgroupRoot, sharedEtcdName)
}

// sharedTLS is where a cluster's API server or a node has its certificate for
// the shared etcd.
func (l *Lab) sharedTLS(who string) string { return l.dir(who, "etcd-tls") }

func (b *builder) startSharedEtcd(ctx context.Context) (string, error) {
	listen := netip.AddrPortFrom(b.state.Clusters[0].Etcd, etcdPort).String()
	argv := []string{
		b.state.Binaries.APIServer, "shared-etcd", "run", "--data-dir", b.dir(sharedEtcdName), "--listen", listen,
		"--unsafe-no-fsync", "--log-format", "text",
	}
	var names []string
	for _, c := range b.state.Clusters {
		argv = append(argv, "--cluster", c.Name)
		names = append(names, c.Name)
	}
	ns := b.netns(sharedEtcdName)
	err := b.launch(ctx, Process{
		Name: sharedEtcdName, Place: place{Netns: ns, Cgroup: b.sharedEtcdCgroup()}, Log: b.log(sharedEtcdName), Argv: argv,
	}, listens(ns, listen))
	if err != nil {
		return "", err
	}
	return "of " + strings.Join(names, ", "), nil
}

// listens asks once whether something does in a namespace.
func listens(ns, addr string) func(context.Context) error {
	return func(ctx context.Context) error {
		return nsthread.InNetns(ns, func() error {
			c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", addr)
			if err != nil {
				return err
			}
			return c.Close()
		})
	}
}

// issueShared has the shared etcd's CA make certificates in dir, if there is one.
func (b *builder) issueShared(ctx context.Context, c Cluster, dir string, who ...string) error {
	if !c.Etcd.IsValid() {
		return nil
	}
	b.trap("certificates for the shared etcd in " + dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	args := append([]string{"shared-etcd", "issue", "--data-dir", b.dir(sharedEtcdName), "--cluster", c.Name, "--out", dir}, who...)
	if out, err := exec.CommandContext(ctx, b.state.Binaries.APIServer, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("issue certificates of the shared etcd to %s: %w: %s", c.Name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
