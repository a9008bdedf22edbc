// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

// readyTimeout bounds the start of one program on a machine that is busy.
const readyTimeout = 60 * time.Second

// ProcessError is a program of the lab that ended or did not get ready.
type ProcessError struct {
	Process string
	Log     string // path
	Tail    string // last lines of Log
	Err     error
}

func (e *ProcessError) Error() string {
	return fmt.Sprintf("%s: %v\n--- last lines of %s\n%s\n---", e.Process, e.Err, e.Log, e.Tail)
}

// Unwrap returns the cause.
func (e *ProcessError) Unwrap() error { return e.Err }

func (b *builder) startCluster(ctx context.Context, c Cluster) (string, error) {
	if err := b.issueShared(ctx, c, b.sharedTLS(c.Name), "--apiserver"); err != nil {
		return "", err
	}
	if err := b.launch(ctx, b.apiServer(c), apiServerReady(c.Socket)); err != nil {
		return "", err
	}
	if c.Etcd.IsValid() {
		if err := b.issueShared(ctx, c, c.AdminTLS, "--admin", "lab"); err != nil {
			return "", err
		}
	} else if err := b.issue(ctx, c, "--admin", "lab", c.AdminTLS); err != nil {
		return "", err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, n := range c.Members {
		g.Go(func() error {
			if err := b.invite(gctx, c, n); err != nil {
				return err
			}
			if err := b.issueShared(gctx, c, b.sharedTLS(n.Name), "--agent", n.Name); err != nil {
				return err
			}
			return b.launch(gctx, b.agent(c, n), agentReady(n.Socket))
		})
	}
	if err := g.Wait(); err != nil {
		return "", err
	}
	what := "api server, etcd, "
	if c.Etcd.IsValid() {
		what = "api server, "
	}
	return fmt.Sprintf("%-31s %s", what+count(len(c.Members), "agent"), identities(ctx, c)), nil
}

// identities says which numbers a cluster gives; "" when it does not say.
func identities(ctx context.Context, c Cluster) string {
	var s *hawserv1.ClusterStatusReport
	err := withMesh(ctx, c.Socket, func(ctx context.Context, m hawserv1.MeshClient) (err error) {
		s, err = m.ClusterStatus(ctx, &hawserv1.ClusterStatusRequest{})
		return err
	})
	if err != nil || s.GetIdentityMin() == 0 {
		return ""
	}
	return fmt.Sprintf("identities from %d", s.GetIdentityMin())
}

func (l *Lab) tlsDir(n Node) string { return l.dir(n.Name, "tls") }

func (l *Lab) tokenFile(n Node) string { return l.dir(n.Name, "token") }

// invite writes the token by which a node enrols.
func (b *builder) invite(ctx context.Context, c Cluster, n Node) error {
	b.trap("token of " + n.Name)
	var token string
	err := withMesh(ctx, c.Socket, func(ctx context.Context, m hawserv1.MeshClient) error {
		r, err := m.InviteNode(ctx, &hawserv1.InviteNodeRequest{Node: n.Name})
		token = r.GetToken()
		return err
	})
	if err != nil {
		return fmt.Errorf("invite node %s: %w", n.Name, err)
	}
	if err := os.WriteFile(b.tokenFile(n), []byte(token+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the token of %s: %w", n.Name, err)
	}
	return nil
}

func (b *builder) apiServer(c Cluster) Process {
	mesh := netip.AddrPortFrom(c.Control, meshPort).String()
	argv := []string{
		b.state.Binaries.APIServer, "run", "--cluster", c.Name, "--cluster-id", strconv.Itoa(int(c.ID)),
		"--data-dir", c.DataDir, "--listen-federation", mesh, "--advertise-federation", mesh, "--socket", c.Socket,
		"--listen-api", netip.AddrPortFrom(c.Control, apiPort).String(),
		"--pod-cidr", both(c.PodCIDR, c.PodCIDR6), "--node-cidr", c.NodeCIDR.String(), "--service-cidr", both(c.ServiceCIDR, c.ServiceCIDR6),
		"--cluster-bits", b.clusterBits(), "--unsafe-no-fsync", "--log-format", "text",
	}
	if c.Etcd.IsValid() {
		argv = append(argv, "--etcd-endpoint", c.EtcdEndpoint(), "--etcd-tls-dir", b.sharedTLS(c.Name), "--shared-etcd")
	} else {
		argv = append(argv, "--listen-etcd", netip.AddrPortFrom(c.Control, etcdPort).String())
	}
	for _, f := range flags(b.state.Spec.APIServer) {
		argv = append(argv, strings.ReplaceAll(f, "{data-dir}", c.DataDir))
	}
	return Process{
		Name:  c.Name + "-apiserver",
		Place: place{Netns: c.Netns, Cgroup: b.controlCgroup(c)},
		Log:   b.log(c.Name + "-apiserver"),
		Argv:  argv,
	}
}

func (b *builder) agent(c Cluster, n Node) Process {
	argv := []string{
		b.state.Binaries.Agent, "--join", "@" + b.tokenFile(n), "--tls-dir", b.tlsDir(n), "--underlay-device", "eth0", "--node-address", n.Address.String(),
		"--pod-cidr", both(n.PodCIDR, n.PodCIDR6), "--state-dir", b.dir(n.Name, "state"), "--socket", n.Socket,
		"--pin-path", n.PinPath, "--cgroup-root", b.nodeCgroup(n), "--map-sizes", "small", "--cluster-bits", b.clusterBits(), "--log-format", "text",
	}
	if c.Etcd.IsValid() {
		argv = append(argv, "--etcd-tls-dir", b.sharedTLS(n.Name), "--shared-etcd")
	}
	settings := maps.Clone(b.state.Spec.Agent)
	if settings == nil {
		settings = map[string]string{}
	}
	maps.Copy(settings, c.Agent)
	return Process{
		Name:  n.Name + "-agent",
		Place: place{Netns: n.Netns, Cgroup: b.agentCgroup(n)},
		Log:   b.log(n.Name + "-agent"),
		Argv:  append(argv, flags(settings)...),
	}
}

func (l *Lab) clusterBits() string { return strconv.Itoa(int(l.state.Spec.ClusterBits)) }

// issue has the cluster's CA make certificates in dir.
func (b *builder) issue(ctx context.Context, c Cluster, kind, name, dir string) error {
	b.trap("certificates of " + name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	cmd := exec.CommandContext(ctx, b.state.Binaries.APIServer, "issue", "--data-dir", c.DataDir, kind, name, "--out", dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("issue certificates for %s of %s: %w: %s", name, c.Name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// launch records and starts a process and waits until it is ready. Its end, or
// no answer in time, is a ProcessError.
func (b *builder) launch(ctx context.Context, p Process, ready func(context.Context) error) error {
	b.trap("process " + p.Name)
	started, err := b.start(p)
	if err != nil {
		return err
	}
	return waitReady(ctx, started, ready)
}

// start records a process, starts it and records its pid.
func (l *Lab) start(p Process) (Process, error) {
	if err := l.setProcess(p); err != nil {
		return p, err
	}
	p, _, err := p.spawn()
	if err != nil {
		return p, err
	}
	return p, l.setProcess(p)
}

func waitReady(ctx context.Context, p Process, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready within %s", readyTimeout))
	defer cancel()
	last := errors.New("no answer yet")
	err := poll(ctx, p.Name+" to be ready", func() (bool, error) {
		if last = ready(ctx); last == nil {
			return true, nil
		}
		if !p.alive() {
			return false, errors.New("it ended")
		}
		return false, nil
	})
	if err == nil {
		return nil
	}
	if ctx.Err() != nil && context.Cause(ctx) != nil {
		err = fmt.Errorf("%w (last answer: %w)", err, last)
	}
	const lines = 12
	return &ProcessError{Process: p.Name, Log: p.Log, Tail: logTail(p.Log, lines), Err: err}
}

// apiServerReady asks once.
func apiServerReady(socket string) func(context.Context) error {
	return func(ctx context.Context) error {
		return withMesh(ctx, socket, func(ctx context.Context, m hawserv1.MeshClient) error {
			_, err := m.ClusterStatus(ctx, &hawserv1.ClusterStatusRequest{})
			return err
		})
	}
}

// agentAnswers asks once.
func agentAnswers(socket string) func(context.Context) error {
	return func(ctx context.Context) error {
		return withNode(ctx, socket, func(ctx context.Context, n hawserv1.NodeClient) error {
			_, err := n.Status(ctx, &hawserv1.StatusRequest{})
			return err
		})
	}
}

// agentReady asks once; an agent without the keyspace is not ready.
func agentReady(socket string) func(context.Context) error {
	return func(ctx context.Context) error {
		return withNode(ctx, socket, func(ctx context.Context, n hawserv1.NodeClient) error {
			s, err := n.Status(ctx, &hawserv1.StatusRequest{})
			if err == nil && !s.GetKeyspace().GetConnected() {
				return fmt.Errorf("keyspace is not connected: %s", s.GetKeyspace().GetLastError())
			}
			return err
		})
	}
}

const callTimeout = 10 * time.Second

func withMesh(ctx context.Context, socket string, fn func(context.Context, hawserv1.MeshClient) error) error {
	return withConn(ctx, socket, func(ctx context.Context, c *grpc.ClientConn) error {
		return fn(ctx, hawserv1.NewMeshClient(c))
	})
}

func withNode(ctx context.Context, socket string, fn func(context.Context, hawserv1.NodeClient) error) error {
	return withConn(ctx, socket, func(ctx context.Context, c *grpc.ClientConn) error {
		return fn(ctx, hawserv1.NewNodeClient(c))
	})
}

func withConn(ctx context.Context, socket string, fn func(context.Context, *grpc.ClientConn) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("dial %s: %w", socket, err)
	}
	defer func() { _ = conn.Close() }()
	return fn(ctx, conn)
}
