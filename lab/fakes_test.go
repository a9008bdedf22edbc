// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cni"
	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/ipam"
	"github.com/hawser-mesh/hawser/lab"
)

// The programs of these labs are stand-ins, so that a lab can be made and killed
// at each of its steps within seconds: the test binary, under the programs'
// names. The plugin is the real one and pods get real devices; there is no etcd
// and no eBPF. Labs of the real programs are the e2e tests' matter.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "hawser":
		waitForSignal()
	case "hawser-cni":
		os.Exit(cni.Main())
	case "hawser-agent":
		exit(fakeAgent(os.Args[1:]))
	case "hawser-apiserver":
		exit(fakeAPIServer(os.Args[1:]))
	}
	switch os.Getenv("LAB_TEST_DO") {
	case "up":
		exit(upAndDie())
	case "exec":
		exit(execInLab())
	}
	os.Exit(m.Run())
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func waitForSignal() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	<-c
	os.Exit(0)
}

// programs makes links to the test binary under the programs' names.
func programs(t *testing.T) lab.Binaries {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"hawser", "hawser-agent", "hawser-apiserver", "hawser-cni"} {
		if err := os.Symlink(self, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return lab.BinariesIn(dir)
}

func serveUnix(socket string, register func(*grpc.Server)) error {
	_ = os.Remove(socket)
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return err
	}
	lis, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	register(s)
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	go func() { <-c; s.Stop() }()
	return s.Serve(lis)
}

type node struct {
	hawserv1.UnimplementedNodeServer
	pool    *ipam.Pool
	zone    string // as it was told; Status tells it as its version
	refused atomic.Bool
	// keyspace is connected while somebody answers on this socket.
	keyspace string
	mu       sync.Mutex
	eps      map[string]*hawserv1.Endpoint
}

func fakeAgent(args []string) error {
	f := flag.NewFlagSet("agent", flag.ContinueOnError)
	socket, podCIDR, zone := f.String("socket", "", ""), f.String("pod-cidr", "", ""), f.String("zone", "", "")
	for _, name := range []string{"join", "tls-dir", "underlay-device", "node-address", "state-dir", "pin-path", "cgroup-root", "map-sizes", "cluster-bits", "log-format"} {
		f.String(name, "", "")
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	pool, err := ipam.New(netip.MustParsePrefix(*podCIDR), nil)
	if err != nil {
		return err
	}
	if os.Getenv("LAB_TEST_MUTE_AGENT") != "" {
		waitForSignal()
	}
	cluster, _, _ := strings.Cut(filepath.Base(filepath.Dir(*socket)), "-")
	n := &node{
		pool: pool, zone: *zone, eps: map[string]*hawserv1.Endpoint{},
		keyspace: filepath.Join(filepath.Dir(filepath.Dir(*socket)), cluster, "apiserver.sock"),
	}
	return serveUnix(*socket, func(s *grpc.Server) { hawserv1.RegisterNodeServer(s, n) })
}

func (n *node) Status(context.Context, *hawserv1.StatusRequest) (*hawserv1.NodeStatusReport, error) {
	c, err := net.Dial("unix", n.keyspace)
	if err == nil {
		c.Close()
	}
	return &hawserv1.NodeStatusReport{Version: n.zone, Keyspace: &hawserv1.KeyspaceStatus{Connected: err == nil}}, nil
}

func (n *node) AddEndpoint(_ context.Context, r *hawserv1.AddEndpointRequest) (*hawserv1.AddEndpointResponse, error) {
	switch r.Name {
	case "killer":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "picky":
		// Refused the first time, when the lab is to have made all else.
		if !n.refused.Swap(true) {
			return nil, status.Error(codes.InvalidArgument, "these labels will not do")
		}
	}
	addr, err := n.pool.Allocate(r.ContainerId)
	if err != nil {
		return nil, err
	}
	dev, err := netdev.EnsurePod(netdev.PodConfig{
		ContainerID: r.ContainerId, Netns: r.Netns, IfName: r.Ifname, Addrs: []netip.Addr{addr}, RouteMTU: 1450,
	})
	if err != nil {
		return nil, err
	}
	e := &hawserv1.Endpoint{
		Addresses: []string{addr.String()}, Gateway: netdev.Gateway4().String(), Mtu: 1450, State: "ready",
		HostDevice: dev.HostDevice, Mac: net.HardwareAddr(dev.PodMAC[:]).String(),
		ContainerId: r.ContainerId, Ifname: r.Ifname, Name: r.Name, Namespace: r.Namespace, Labels: r.Labels,
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.eps[r.ContainerId] = e
	return &hawserv1.AddEndpointResponse{Endpoint: e}, nil
}

func (n *node) DeleteEndpoint(_ context.Context, r *hawserv1.DeleteEndpointRequest) (*hawserv1.DeleteEndpointResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e, ok := n.eps[r.ContainerId]
	if !ok {
		return nil, status.Error(codes.NotFound, "no such endpoint")
	}
	delete(n.eps, r.ContainerId)
	return &hawserv1.DeleteEndpointResponse{}, netdev.DeletePod(e.HostDevice)
}

func (n *node) ListEndpoints(context.Context, *hawserv1.ListEndpointsRequest) (*hawserv1.ListEndpointsResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var r hawserv1.ListEndpointsResponse
	for _, e := range n.eps {
		r.Endpoints = append(r.Endpoints, e)
	}
	return &r, nil
}

type mesh struct {
	hawserv1.UnimplementedMeshServer
	vip string
}

func fakeAPIServer(args []string) error {
	if args[0] == "issue" {
		f := flag.NewFlagSet("issue", flag.ContinueOnError)
		out := f.String("out", "", "")
		for _, name := range []string{"data-dir", "agent", "admin"} {
			f.String(name, "", "")
		}
		if err := f.Parse(args[1:]); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(*out, "tls.crt"), nil, 0o600)
	}
	f := flag.NewFlagSet("apiserver", flag.ContinueOnError)
	socket, vips, data := f.String("socket", "", ""), f.String("service-cidr", "", ""), f.String("data-dir", "", "")
	for _, name := range []string{"cluster", "cluster-id", "listen-etcd", "listen-federation", "advertise-federation", "listen-api", "pod-cidr", "node-cidr", "cluster-bits", "log-format"} {
		f.String(name, "", "")
	}
	f.Bool("unsafe-no-fsync", false, "")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	if err := os.MkdirAll(*data, 0o700); err != nil {
		return err
	}
	if os.Getenv("LAB_TEST_BREAK_APISERVER") != "" {
		return fmt.Errorf("the disk is on fire")
	}
	m := &mesh{vip: strings.Replace(*vips, ".0/24", ".10", 1)}
	return serveUnix(*socket, func(s *grpc.Server) { hawserv1.RegisterMeshServer(s, m) })
}

func (m *mesh) ClusterStatus(context.Context, *hawserv1.ClusterStatusRequest) (*hawserv1.ClusterStatusReport, error) {
	return &hawserv1.ClusterStatusReport{}, nil
}

func (m *mesh) Invite(context.Context, *hawserv1.InviteRequest) (*hawserv1.InviteResponse, error) {
	return &hawserv1.InviteResponse{Token: "hw1.test"}, nil
}

func (m *mesh) InviteNode(context.Context, *hawserv1.InviteNodeRequest) (*hawserv1.InviteNodeResponse, error) {
	return &hawserv1.InviteNodeResponse{Token: "hw1.node"}, nil
}

func (m *mesh) Join(_ context.Context, r *hawserv1.JoinRequest) (*hawserv1.JoinResponse, error) {
	return &hawserv1.JoinResponse{Joined: r.Token == "hw1.test"}, nil
}

func (m *mesh) MeshStatus(context.Context, *hawserv1.MeshStatusRequest) (*hawserv1.MeshStatusResponse, error) {
	return &hawserv1.MeshStatusResponse{Peers: []*hawserv1.PeerStatus{{State: "connected", Keys: 7}}}, nil
}

func (m *mesh) ListServices(context.Context, *hawserv1.ListServicesRequest) (*hawserv1.ListServicesResponse, error) {
	return &hawserv1.ListServicesResponse{Services: []*hawserv1.ServiceInfo{{Namespace: "demo", Name: "echo", Vips: []string{m.vip}}}}, nil
}

// upAndDie is a `lab up` that ends with SIGKILL before change LAB_TEST_KILL.
func upAndDie() error {
	kill, _ := strconv.Atoi(os.Getenv("LAB_TEST_KILL"))
	_, err := lab.Up(context.Background(), testSpec(os.Getenv("LAB_TEST_NAME")), lab.Options{
		Binaries: lab.BinariesIn(os.Getenv("LAB_TEST_BIN")),
		Trap: func(n int, what string) {
			if n == kill {
				fmt.Println(what)
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		},
	})
	return err
}

func execInLab() error {
	l, err := lab.Open(os.Getenv("LAB_TEST_NAME"))
	if err != nil {
		return err
	}
	return l.Exec(os.Args[1], os.Args[2:])
}
