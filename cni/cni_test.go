// SPDX-License-Identifier: Apache-2.0

package cni_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cni"
)

// TestMain lets the test binary be the plugin: libcni executes it through a
// link named hawser-cni.
func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" {
		os.Exit(cni.Main())
	}
	os.Exit(m.Run())
}

// agent is a Node server with one endpoint at most.
type agent struct {
	hawserv1.UnimplementedNodeServer
	added   *hawserv1.AddEndpointRequest
	deleted *hawserv1.DeleteEndpointRequest
	state   string
	mac     string // of the endpoint's device
	fail    error
	// others are endpoints beside it, and collected those that were deleted.
	others    []*hawserv1.Endpoint
	collected []string
	notReady  string
}

func (a *agent) AddEndpoint(_ context.Context, r *hawserv1.AddEndpointRequest) (*hawserv1.AddEndpointResponse, error) {
	a.added = r
	return &hawserv1.AddEndpointResponse{Endpoint: &hawserv1.Endpoint{
		Addresses: []string{"10.1.1.7", "fd00:1::7"}, Gateway: "169.254.1.1", Gateway6: "fe80::1", Mtu: 1450,
		HostDevice: "hwp0011", Mac: "02:00:00:00:00:07", State: "ready",
	}}, a.fail
}

func (a *agent) DeleteEndpoint(_ context.Context, r *hawserv1.DeleteEndpointRequest) (*hawserv1.DeleteEndpointResponse, error) {
	a.deleted = r
	a.collected = append(a.collected, r.GetContainerId()+"/"+r.GetIfname())
	return &hawserv1.DeleteEndpointResponse{}, a.fail
}

func (a *agent) ListEndpoints(context.Context, *hawserv1.ListEndpointsRequest) (*hawserv1.ListEndpointsResponse, error) {
	var l hawserv1.ListEndpointsResponse
	if a.added != nil {
		l.Endpoints = append(l.Endpoints, &hawserv1.Endpoint{ContainerId: a.added.ContainerId, Ifname: a.added.Ifname, State: a.state, Mac: a.mac})
	}
	l.Endpoints = append(l.Endpoints, a.others...)
	return &l, nil
}

func (a *agent) Status(context.Context, *hawserv1.StatusRequest) (*hawserv1.NodeStatusReport, error) {
	return &hawserv1.NodeStatusReport{NotReady: a.notReady, Pools: []*hawserv1.AddressPool{{Prefix: "10.1.1.0/24"}}}, a.fail
}

type runtime struct {
	cni  *libcni.CNIConfig
	conf *libcni.NetworkConfigList
	rt   *libcni.RuntimeConf
}

func newRuntime(t testing.TB, socket, args string) *runtime {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "hawser-cni")); err != nil {
		t.Fatal(err)
	}
	conf, err := libcni.NetworkConfFromBytes([]byte(`{"cniVersion":"1.1.0","name":"hawser","plugins":[{"type":"hawser-cni","socket":` + quote(socket) + `,"args":` + args + `}]}`))
	if err != nil {
		t.Fatal(err)
	}
	// The pod's namespace is this process's own: the fake agent never enters it.
	t.Setenv("CNI_NETNS_OVERRIDE", "1")
	return &runtime{
		cni:  libcni.NewCNIConfigWithCacheDir([]string{dir}, filepath.Join(dir, "cache"), nil),
		conf: conf,
		rt:   &libcni.RuntimeConf{ContainerID: "c0ffee", NetNS: "/proc/self/ns/net", IfName: "eth0"},
	}
}

func quote(s string) string { b, _ := json.Marshal(s); return string(b) }

func serve(t testing.TB, a *agent) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	hawserv1.RegisterNodeServer(s, a)
	go func() { _ = s.Serve(lis) }() // ends with Stop
	t.Cleanup(s.Stop)
	return socket
}

const demoLabels = `{"cni":{"labels":[{"key":"app","value":"echo"},{"key":"tier","value":"a:b"}],"namespaceLabels":[{"key":"team","value":"red"}]}}`

func TestAdd(t *testing.T) {
	a := &agent{}
	r := newRuntime(t, serve(t, a), demoLabels)
	r.rt.Args = [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "demo"}, {"K8S_POD_NAME", "echo-1"}, {"SOMETHING_NEW", "x"}}
	res, err := r.cni.AddNetworkList(t.Context(), r.conf, r.rt)
	if err != nil {
		t.Fatal(err)
	}
	got, err := current.NewResultFromResult(res)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.IPs) != 2 || got.IPs[0].Address.String() != "10.1.1.7/32" || got.IPs[0].Gateway.String() != "169.254.1.1" || *got.IPs[0].Interface != 1 {
		t.Errorf("addresses %v", got.IPs)
	}
	if got.IPs[1].Address.String() != "fd00:1::7/128" || got.IPs[1].Gateway.String() != "fe80::1" || *got.IPs[1].Interface != 1 {
		t.Errorf("IPv6 address %v", got.IPs[1])
	}
	if r := got.Routes[1]; r.Dst.String() != "::/0" || r.GW.String() != "fe80::1" || r.MTU != 1450 {
		t.Errorf("IPv6 route %v", r)
	}
	if len(got.Routes) != 2 || got.Routes[0].Dst.String() != "0.0.0.0/0" || got.Routes[0].MTU != 1450 {
		t.Errorf("routes %v", got.Routes)
	}
	if len(got.Interfaces) != 2 || got.Interfaces[0].Name != "hwp0011" || got.Interfaces[1].Mac != "02:00:00:00:00:07" || got.Interfaces[1].Sandbox != r.rt.NetNS {
		t.Errorf("interfaces %v", got.Interfaces)
	}
	if a.added.Namespace != "demo" || a.added.Name != "echo-1" || a.added.ContainerId != "c0ffee" || a.added.Ifname != "eth0" {
		t.Errorf("the agent was asked for %v", a.added)
	}
	if a.added.Network != "hawser" {
		t.Errorf("network %q", a.added.Network)
	}
	if want := []string{"k8s:app=echo", "k8s:tier=a:b"}; !slices.Equal(a.added.Labels, want) {
		t.Errorf("labels %v, want %v", a.added.Labels, want)
	}
	if want := []string{"namespace:team=red"}; !slices.Equal(a.added.NamespaceLabels, want) {
		t.Errorf("labels of the namespace %v, want %v", a.added.NamespaceLabels, want)
	}
}

func TestLabelsWithoutPod(t *testing.T) {
	a := &agent{}
	r := newRuntime(t, serve(t, a), demoLabels)
	if _, err := r.cni.AddNetworkList(t.Context(), r.conf, r.rt); err != nil {
		t.Fatal(err)
	}
	if want := []string{"cni:app=echo", "cni:tier=a:b"}; !slices.Equal(a.added.Labels, want) {
		t.Errorf("labels %v, want %v", a.added.Labels, want)
	}
	if a.added.Name != "c0ffee" {
		t.Errorf("name %q, want the container's", a.added.Name)
	}
}

func TestLabelMayNotClaimASource(t *testing.T) {
	a := &agent{}
	r := newRuntime(t, serve(t, a), `{"cni":{"labels":[{"key":"mesh:cluster","value":"west"}]}}`)
	_, err := r.cni.AddNetworkList(t.Context(), r.conf, r.rt)
	wantCode(t, err, types.ErrInvalidNetworkConfig, "mesh:cluster")
	if a.added != nil {
		t.Error("the agent was asked all the same")
	}
}

func TestErrorsHaveCodes(t *testing.T) {
	for _, c := range []struct {
		name string
		fail error
		code uint
	}{
		{"agent is not ready", status.Error(codes.Unavailable, "keyspace is not connected"), types.ErrTryAgainLater},
		{"no address left", status.Error(codes.ResourceExhausted, "no free address"), types.ErrTryAgainLater},
		{"bad request", status.Error(codes.InvalidArgument, "label"), types.ErrInvalidNetworkConfig},
		{"anything else", errors.New("boom"), types.ErrInternal},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRuntime(t, serve(t, &agent{fail: c.fail}), demoLabels)
			_, err := r.cni.AddNetworkList(t.Context(), r.conf, r.rt)
			wantCode(t, err, c.code, status.Convert(c.fail).Message())
		})
	}
}

func TestWithoutAgent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "nobody.sock")
	r := newRuntime(t, socket, demoLabels)
	_, err := r.cni.AddNetworkList(t.Context(), r.conf, r.rt)
	wantCode(t, err, types.ErrTryAgainLater, socket)
	// The runtime must come back: the agent still has the endpoint.
	wantCode(t, r.cni.DelNetworkList(t.Context(), r.conf, r.rt), types.ErrTryAgainLater, socket)
	wantCode(t, r.cni.GetStatusNetworkList(t.Context(), r.conf), types.ErrPluginNotAvailable, socket)
}

func TestDelCheckStatusVersion(t *testing.T) {
	a := &agent{state: "ready"}
	r := newRuntime(t, serve(t, a), demoLabels)
	// Its pool is full: that is no reason to evict what the node runs.
	if err := r.cni.GetStatusNetworkList(t.Context(), r.conf); err != nil {
		t.Errorf("status: %v", err)
	}
	a.notReady = "the policies are not known yet"
	wantCode(t, r.cni.GetStatusNetworkList(t.Context(), r.conf), types.ErrPluginNotAvailable, a.notReady)
	r.rt.IfName = "lo" // the one device that this process's namespace has for sure
	if _, err := r.cni.AddNetworkList(t.Context(), r.conf, r.rt); err != nil {
		t.Fatal(err)
	}
	if err := r.cni.CheckNetworkList(t.Context(), r.conf, r.rt); err != nil {
		t.Errorf("check: %v", err)
	}
	a.mac = "02:00:00:00:00:07"
	wantCode(t, r.cni.CheckNetworkList(t.Context(), r.conf, r.rt), types.ErrInternal, "another device")
	a.state = "creating"
	wantCode(t, r.cni.CheckNetworkList(t.Context(), r.conf, r.rt), types.ErrTryAgainLater, "creating")
	a.added = nil
	wantCode(t, r.cni.CheckNetworkList(t.Context(), r.conf, r.rt), types.ErrUnknownContainer, "c0ffee")
	for _, gone := range []error{nil, status.Error(codes.NotFound, "no such endpoint")} {
		a.fail = gone
		if err := r.cni.DelNetworkList(t.Context(), r.conf, r.rt); err != nil {
			t.Errorf("delete, agent says %v: %v", gone, err)
		}
	}
	if a.deleted.ContainerId != "c0ffee" || a.deleted.Ifname != "lo" {
		t.Errorf("the agent was asked to delete %v", a.deleted)
	}
	info, err := r.cni.GetVersionInfo(t.Context(), "hawser-cni")
	if err != nil || !slices.Contains(info.SupportedVersions(), "1.1.0") {
		t.Errorf("version: %v, %v", info, err)
	}
}

// A pod without the device that the agent made, or without its namespace, fails.
func TestCheckLooksIntoThePod(t *testing.T) {
	a := &agent{state: "ready", mac: "02:00:00:00:00:07"}
	r := newRuntime(t, serve(t, a), demoLabels)
	r.rt.IfName = "none0"
	if _, err := r.cni.AddNetworkList(t.Context(), r.conf, r.rt); err != nil {
		t.Fatal(err)
	}
	wantCode(t, r.cni.CheckNetworkList(t.Context(), r.conf, r.rt), types.ErrInternal, "none0")
	r.rt.NetNS = filepath.Join(t.TempDir(), "gone")
	wantCode(t, r.cni.CheckNetworkList(t.Context(), r.conf, r.rt), types.ErrInternal, "gone")
}

// GC deletes what the runtime has not any more, and nothing that is not its.
func TestGC(t *testing.T) {
	of := func(network, container, state string) *hawserv1.Endpoint {
		return &hawserv1.Endpoint{Network: network, ContainerId: container, Ifname: "eth0", State: state}
	}
	all := []*hawserv1.Endpoint{
		of("hawser", "kept", "ready"), of("hawser", "stale", "ready"), of("hawser", "half", "deleting"), of("hawser", "new", "creating"),
		of("other", "elsewhere", "ready"), of("", "lost:hwp0011", "ready"),
	}
	kept := types.GCAttachment{ContainerID: "kept", IfName: "eth0"}
	for _, c := range []struct {
		name string
		args *libcni.GCArgs
		want []string
	}{
		{"some are valid", &libcni.GCArgs{ValidAttachments: []types.GCAttachment{kept, {ContainerID: "stale", IfName: "eth1"}}}, []string{"stale/eth0", "half/eth0"}},
		{"none is", &libcni.GCArgs{}, []string{"kept/eth0", "stale/eth0", "half/eth0"}},
		{"the runtime does not say", nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &agent{others: all}
			r := newRuntime(t, serve(t, a), demoLabels)
			if err := r.cni.GCNetworkList(t.Context(), r.conf, c.args); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(a.collected, c.want) {
				t.Errorf("deleted %v, want %v", a.collected, c.want)
			}
		})
	}
	r := newRuntime(t, serve(t, &agent{others: all, fail: status.Error(codes.Unavailable, "store is away")}), demoLabels)
	if err := r.cni.GCNetworkList(t.Context(), r.conf, &libcni.GCArgs{}); err == nil || !strings.Contains(err.Error(), "store is away") || !strings.Contains(err.Error(), "stale") {
		t.Errorf("the agent could not: %v", err)
	}
}

func wantCode(t *testing.T, err error, code uint, mentions string) {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) {
		t.Errorf("error %v (%T), want a CNI error with code %d", err, err, code)
		return
	}
	if e.Code != code || !strings.Contains(e.Error(), mentions) {
		t.Errorf("error %d %q, want code %d and %q in it", e.Code, e, code, mentions)
	}
}

// BenchmarkAdd is the plugin's own share of an ADD: the agent answers at once.
func BenchmarkAdd(b *testing.B) {
	r := newRuntime(b, serve(b, &agent{}), demoLabels)
	for b.Loop() {
		ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
		if _, err := r.cni.AddNetworkList(ctx, r.conf, r.rt); err != nil {
			b.Fatal(err)
		}
		cancel()
	}
}
