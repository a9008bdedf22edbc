// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/internal/testutil/ports"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// storage is where the etcd of a cluster is.
type storage string

const (
	onTmpfs  storage = "external etcd on tmpfs"
	onDisk   storage = "external etcd on disk"
	embedded storage = "embedded etcd on tmpfs"
)

// cluster is a real one: a hawser-apiserver process and, unless it is embedded,
// an etcd process, with default settings (the etcd's port without HTTP, as the
// operator's guide has it). Both sync what they write. An API
// server in another namespace reaches its etcd, which is in the test's, through
// the test.
type cluster struct {
	world  // what it could have; only its ranges are real
	host   netip.Addr
	netns  string // of the API server, path; empty: the test's
	dir    string
	store  storage
	etcd   *etcdtest.Etcd // nil if embedded
	server *group         // of the API server
	data   *group         // of etcd
	kv     *etcd.Client   // with the API server's rights
	listen string         // of etcd
	port   uint16         // of federation

	cmd  *exec.Cmd
	out  bytes.Buffer
	conn *grpc.ClientConn
}

// startCluster runs a cluster until the test ends. host is an address in the
// namespace; cluster id and ranges are the world's.
func startCluster(t *testing.T, id uint32, store storage, host netip.Addr, netns string) *cluster {
	t.Helper()
	return startClusterAt(t, id, store, netip.AddrPortFrom(host, federationPort), netns)
}

const federationPort = 4243

// startClusterAt is startCluster with another port than usual, for one beside
// another on the same address.
func startClusterAt(t *testing.T, id uint32, store storage, at netip.AddrPort, netns string) *cluster {
	t.Helper()
	c := &cluster{world: bigWorld("", id), host: at.Addr(), port: at.Port(), netns: netns, store: store, server: newGroup(t, "apiserver"), data: newGroup(t, "etcd")}
	c.dir = scratchDir(t, store)
	if store == embedded {
		c.Name = etcdtest.RandomCluster()
		c.listen = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	} else {
		c.etcd = etcdtest.StartProcess(t, etcdtest.Process{DataDir: filepath.Join(c.dir, "etcd"), Fsync: true, GRPCOnly: true, Command: c.data.command})
		c.Name, c.listen = c.etcd.Cluster, c.etcd.Endpoints()[0]
		if netns != "" {
			forwardFrom(t, netns, c.listen)
		}
		c.kv = c.etcd.APIServer(t)
	}
	t.Cleanup(c.kill)
	c.start(t)
	if store == embedded {
		c.kv = c.connect(t, c.issue(t, "admin", "perf"))
	}
	return c
}

// scratchDir is a directory that goes with the test; below /var/tmp for a disk.
func scratchDir(t *testing.T, store storage) string {
	t.Helper()
	parent := "/dev/shm"
	if store == onDisk {
		parent = "/var/tmp"
	}
	dir, err := os.MkdirTemp(parent, "hwperf-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func freePort(t *testing.T) int {
	t.Helper()
	return int(ports.Free(t).Port())
}

// inside makes the command of the API server, in the cluster's namespace.
func (c *cluster) inside(name string, args ...string) *exec.Cmd {
	if c.netns == "" {
		return c.server.command(name, args...)
	}
	return c.server.command("nsenter", append([]string{"--net=" + c.netns, name}, args...)...)
}

func program(name string) string {
	path, err := filepath.Abs(filepath.Join("../../bin", name))
	if err != nil {
		panic(err) // the working directory is gone
	}
	return path
}

func (c *cluster) federation() string { return netip.AddrPortFrom(c.host, c.port).String() }
func (c *cluster) socket() string     { return filepath.Join(c.dir, "api.sock") }

// start runs the API server and returns when it answers.
func (c *cluster) start(t *testing.T) {
	t.Helper()
	argv := []string{
		"run", "--cluster", c.Name, "--cluster-id", fmt.Sprint(c.ID), "--data-dir", c.dir, "--socket", c.socket(),
		"--listen-federation", c.federation(), "--metrics-listen", "",
		"--pod-cidr", c.podCIDR().String(), "--node-cidr", c.nodeCIDR().String(), "--service-cidr", c.serviceCIDR().String(),
	}
	if c.store == embedded {
		argv = append(argv, "--listen-etcd", c.listen)
	} else {
		files, err := c.etcd.Files(pki.Request{Role: pki.RoleAPIServer})
		if err != nil {
			t.Fatal(err)
		}
		argv = append(argv, "--etcd-endpoint", "https://"+c.listen, "--etcd-tls-dir", asTLS(t, files))
	}
	c.out.Reset()
	c.cmd = c.inside(program("hawser-apiserver"), argv...)
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.out
	if dir := os.Getenv("HAWSER_PERF_LOGS"); dir != "" {
		f, err := os.OpenFile(filepath.Join(dir, c.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		c.cmd.Stdout, c.cmd.Stderr = f, f
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var err error
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if _, err = c.mesh(t).ClusterStatus(t.Context(), &hawserv1.ClusterStatusRequest{}); err == nil {
			return
		}
	}
	c.kill()
	t.Fatalf("API server of %s: %v\n%s", c.Name, err, c.out.String())
}

// kill ends the API server as SIGKILL does.
func (c *cluster) kill() {
	if c.cmd != nil {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
		c.cmd = nil
	}
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// mesh is the API server's own API.
func (c *cluster) mesh(t *testing.T) hawserv1.MeshClient {
	t.Helper()
	if c.conn == nil {
		var err error
		c.conn, err = grpc.NewClient("unix://"+c.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond}, MinConnectTimeout: time.Second}))
		if err != nil {
			t.Fatal(err)
		}
	}
	return hawserv1.NewMeshClient(c.conn)
}

// asTLS copies a certificate to where programs look for one: tls.crt, tls.key
// and ca.crt of a directory.
func asTLS(t *testing.T, f pki.Files) string {
	t.Helper()
	dir := t.TempDir()
	for name, from := range map[string]string{"tls.crt": f.Cert, "tls.key": f.Key, "ca.crt": f.CA} {
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// issue has the cluster's CA make a certificate.
func (c *cluster) issue(t *testing.T, kind, name string) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), program("hawser-apiserver"), "issue", "--data-dir", c.dir, "--"+kind, name, "--out", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("issue %s: %v: %s", name, err, out)
	}
	return dir
}

func (c *cluster) connect(t *testing.T, dir string) *etcd.Client {
	t.Helper()
	tls, err := pki.FilesIn(dir, "tls").ClientTLS(&pki.ID{Cluster: c.Name, Role: pki.RoleAPIServer})
	if err != nil {
		t.Fatal(err)
	}
	kv, err := etcd.NewClient(etcd.ClientConfig{Endpoints: []string{c.listen}, TLS: tls})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kv.Close() })
	return kv
}

// invite makes a token for each world.
func (c *cluster) invite(t *testing.T, worlds []world) (tokens []string, version string) {
	t.Helper()
	st, err := c.mesh(t).ClusterStatus(t.Context(), &hawserv1.ClusterStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range worlds {
		r, err := c.mesh(t).Invite(t.Context(), &hawserv1.InviteRequest{To: w.Name})
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, r.GetToken())
	}
	return tokens, st.GetVersion()
}

// revision is etcd's: it moves by one with each transaction that writes.
func (c *cluster) revision(t *testing.T) int64 {
	t.Helper()
	_, rev, err := c.kv.Get(t.Context(), kvstore.NewKey(kvstore.State, c.Name, kvstore.KindCluster).String())
	if err != nil {
		t.Fatal(err)
	}
	return rev
}
