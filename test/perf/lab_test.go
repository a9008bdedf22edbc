// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/lab"
)

// within bounds waiting for a state.
const within = 30 * time.Second

func labName(what string) string { return fmt.Sprintf("%s%d", what, os.Getpid()) }

// startLab makes a lab that goes when the test ends. Programs are those of bin/.
func startLab(t *testing.T, spec lab.Spec, opts lab.Options) *lab.Lab {
	t.Helper()
	dir, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	opts.Binaries = lab.BinariesIn(dir)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		if _, err := lab.Down(ctx, spec.Name); err != nil {
			t.Errorf("remove lab: %v", err)
		}
	})
	l, err := lab.Up(t.Context(), spec, opts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func addPod(t *testing.T, l *lab.Lab, cluster string, spec lab.PodSpec) (lab.Pod, netip.Addr) {
	t.Helper()
	p, err := lab.AddPod(t.Context(), l.Name(), cluster, spec)
	if err != nil {
		t.Fatal(err)
	}
	a, err := netip.ParseAddr(p.Addresses[0])
	if err != nil {
		t.Fatal(err)
	}
	return p, a
}

// onSocket makes a connection to a program's unix socket until the test ends.
func onSocket(t testing.TB, path string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Ports of the servers in pods; the policy lets in all but deniedPort.
const (
	onePort    = 9001 // client and server on one CPU
	twoPort    = 9002 // on two
	udpPort    = 9003
	deniedPort = 9009
)

// perfPolicy makes the server enforce ingress and the client egress.
const perfPolicy = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts: [{ports: [{port: "9001", protocol: TCP}, {port: "9002", protocol: TCP}, {port: "9003", protocol: UDP}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: client, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress:
  - toEndpoints: [{matchLabels: {app: server}}]
`

// Names of shapes.
const (
	hawserName = "hawser"
	netdevName = "hawser-netdev" // the same with tunnel headers by the kernel's device
	plainName  = "plain"
)

// hawserShape is the shape with Hawser: one cluster of two nodes, policies of
// both pods in force.
func hawserShape(t *testing.T) (shape, *lab.Lab) {
	t.Helper()
	return hawserShapeOf(t, lab.NewSpec(labName("p"), 1, 2))
}

// hawserShapeOf is hawserShape in a lab made otherwise, of two nodes or more.
func hawserShapeOf(t *testing.T, spec lab.Spec) (shape, *lab.Lab) {
	t.Helper()
	l := startLab(t, spec, lab.Options{})
	c := l.Clusters()[0]
	client, _ := addPod(t, l, c.Name, lab.PodSpec{Name: "client", Node: c.Members[0].Name, Labels: map[string]string{"app": "client"}})
	server, addr := addPod(t, l, c.Name, lab.PodSpec{Name: "server", Node: c.Members[1].Name, Labels: map[string]string{"app": "server"}})
	s := shape{
		name: hawserName, client: client.Place.Netns, server: server.Place.Netns, addr: addr,
		node: [2]string{c.Members[0].Netns, c.Members[1].Netns},
	}
	denied := netip.AddrPortFrom(addr, deniedPort)
	startServer(t, "serve", s.server, 0, denied)
	d := &net.Dialer{Timeout: 300 * time.Millisecond}
	etcdtest.Eventually(t, within, "pods reach each other", func() bool { return answered(t.Context(), s.client, denied, d) })
	mesh := hawserv1.NewMeshClient(onSocket(t, c.Socket))
	if _, err := mesh.ApplyPolicy(t.Context(), &hawserv1.ApplyPolicyRequest{Source: perfPolicy}); err != nil {
		t.Fatal(err)
	}
	etcdtest.Eventually(t, within, "the policy is in force", func() bool { return !answered(t.Context(), s.client, denied, d) })
	return s, l
}
