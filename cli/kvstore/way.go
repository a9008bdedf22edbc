// SPDX-License-Identifier: Apache-2.0

package kvstore

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netns"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/clicontext"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/internal/pki"
)

// enteredVar marks a process that has already entered etcd's namespace.
const enteredVar = "HAWSER_KVSTORE_NETNS"

// embedded is the mode of an etcd inside the API server.
const embedded = "embedded"

// wayTo is where a cluster's etcd is, and the certificate for it: what the
// context says, or else what the API server does. When it is in another network
// namespace the process starts itself again there.
func wayTo(cmd *cobra.Command, s *session.Session, cl *clicontext.Cluster) ([]string, *tls.Config, error) {
	if e := cl.Etcd; e != nil {
		if e.Netns != "" && os.Getenv(enteredVar) == "" {
			return nil, nil, restartIn(e.Netns)
		}
		cfg, err := pki.FilesIn(e.TLSDir, "tls").ClientTLS(nil)
		return []string{e.Endpoint}, cfg, err
	}
	d, err := session.Ask(cmd.Context(), s, hawserv1.MeshClient.Describe, &hawserv1.DescribeRequest{})
	if err != nil {
		return nil, nil, fmt.Errorf("where the cluster's etcd is, its API server says: %w", err)
	}
	if cl.Socket != "" {
		cfg, err := hostTLS(d)
		return d.GetEtcdEndpoints(), cfg, err
	}
	if d.GetEtcdMode() != embedded {
		return nil, nil, fmt.Errorf("the etcd of cluster %q (%s) is not its API server's, and has certificates of its own: name it in the context: "+
			"hawser config add-context … --etcd-endpoint %s --etcd-tls-dir DIR", cl.Name, d.GetEtcdMode(), strings.Join(d.GetEtcdEndpoints(), " or "))
	}
	cfg, err := pki.FilesIn(cl.TLSDir, "tls").ClientTLS(&pki.ID{Cluster: cl.Name, Role: pki.RoleAPIServer})
	return fromAfar(d.GetEtcdEndpoints(), cl.Address), cfg, err
}

// hostTLS is what root on the API server's host reaches etcd with: an
// administrator's certificate that is never written anywhere, or, to an etcd
// that has certificates of its own, the API server's.
func hostTLS(d *hawserv1.ClusterDescription) (*tls.Config, error) {
	if d.GetEtcdMode() != embedded {
		cfg, err := pki.FilesIn(d.GetEtcdTlsDir(), "tls").ClientTLS(nil)
		return cfg, explainFiles(err)
	}
	ca, err := pki.LoadCA(d.GetPkiDir())
	if err != nil {
		return nil, explainFiles(err)
	}
	leaf, err := ca.Issue(pki.Request{Role: pki.RoleAdmin, Name: "root"}, time.Now())
	if err != nil {
		return nil, err
	}
	return leaf.ClientTLS(pki.ID{Cluster: d.GetCluster(), Role: pki.RoleAPIServer}), nil
}

func explainFiles(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: run as root, or as an administrator with a certificate: hawser config add-context --help", err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: the API server sees other files; use an administrator's certificate: hawser config add-context --help", err)
	}
	return err
}

// fromAfar are endpoints as they are reached from another host: one at a
// loopback address listens at all, so at that of the API server, too.
func fromAfar(endpoints []string, apiServer string) []string {
	var out []string
	for _, e := range endpoints {
		e = strings.TrimPrefix(e, "https://")
		host, _, err := net.SplitHostPort(apiServer)
		if at, perr := netip.ParseAddrPort(e); perr == nil && err == nil && at.Addr().IsLoopback() {
			e = net.JoinHostPort(host, fmt.Sprint(at.Port()))
		}
		out = append(out, e)
	}
	return out
}

// restartIn replaces the process by itself in another network namespace: all its
// threads must be there. It returns only on error.
func restartIn(path string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer func() { _ = ns.Close() }()
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter network namespace %s (root is needed): %w", path, err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(self, os.Args, append(os.Environ(), enteredVar+"=1"))
}
