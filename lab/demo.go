// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

const (
	demoNamespace = "demo"
	demoRequests  = 20
	demoTimeout   = 30 * time.Second
	echoPort      = 8080
)

// demoService is applied in every cluster: one global service.
const demoService = `apiVersion: v1
kind: Service
metadata:
  name: echo
  namespace: demo
  annotations:
    hawser.io/global: "true"
spec:
  selector:
    app: echo
  ports:
  - name: http
    protocol: TCP
    port: 80
    targetPort: 8080
`

// demoPolicy is applied in one cluster. A selector that names no cluster means
// the local one: clients of other clusters are not let in.
const demoPolicy = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: only-local
  namespace: demo
spec:
  endpointSelector:
    matchLabels:
      app: echo
  ingress:
  - fromEndpoints:
    - matchLabels:
        app: client
    toPorts:
    - ports:
      - port: "8080"
        protocol: TCP
`

// demo deploys the service and shows it working.
func (b *builder) demo(ctx context.Context) error {
	cs := b.state.Clusters
	pods := b.demoPods()
	err := b.step("demo", func() (string, error) {
		if err := b.addPods(ctx, pods); err != nil {
			return "", err
		}
		for _, c := range cs {
			b.trap("service of " + c.Name)
			if err := applyService(ctx, c, demoService); err != nil {
				return "", err
			}
		}
		return count(len(pods), "pod") + ", service echo (global)", nil
	})
	if err != nil {
		return err
	}
	for _, c := range cs {
		name := c.Name + "/client → http://" + ServiceName(demoNamespace, "echo")
		if err := b.step(name, func() (string, error) {
			return b.showSpread(ctx, c, "http://"+ServiceName(demoNamespace, "echo")+"/")
		}); err != nil {
			return err
		}
		if !b.state.Spec.IPv6 {
			continue
		}
		if err := b.step(c.Name+"/client → echo over IPv6", func() (string, error) { return b.showIPv6(ctx, c) }); err != nil {
			return err
		}
	}
	if len(cs) < 2 {
		return nil
	}
	name := fmt.Sprintf("%s/client → echo, policy \"only %s\"", cs[1].Name, cs[0].Name)
	return b.step(name, func() (string, error) { return b.showPolicy(ctx, cs[0], cs[1]) })
}

// demoPods are a client per cluster and two backends on different nodes, if
// there are two.
func (b *builder) demoPods() []func(*Lab) Pod {
	clusters := b.state.Clusters
	var out []func(*Lab) Pod
	for _, c := range clusters {
		specs := []PodSpec{{Name: "client", Labels: map[string]string{"app": "client"}}}
		for i := 1; i <= 2; i++ {
			node := c.NodeName(min(i, c.Nodes))
			name := fmt.Sprintf("echo-%d", i)
			specs = append(specs, PodSpec{
				Name: name, Node: node, Labels: map[string]string{"app": "echo"},
				Command: []string{
					b.state.Binaries.Hawser, "lab", "workload", "echo", "--cluster-name", c.Name, "--node-name", node,
					"--pod-name", name, "--listen", fmt.Sprintf(":%d", echoPort),
				},
			})
		}
		for _, s := range specs {
			s.Namespace = demoNamespace
			s = s.withDefaults(c.ClusterSpec)
			out = append(out, func(l *Lab) Pod { return l.newPod(c, s) })
		}
	}
	return out
}

func applyService(ctx context.Context, c Cluster, source string) error {
	err := withMesh(ctx, c.Socket, func(ctx context.Context, m hawserv1.MeshClient) error {
		_, err := m.ApplyService(ctx, &hawserv1.ApplyServiceRequest{Source: source})
		return err
	})
	if err != nil {
		return fmt.Errorf("apply service in %s: %w", c.Name, err)
	}
	return nil
}

// Answers are what `lab workload get` prints: how many requests each cluster
// answered.
type Answers struct {
	OK     int            `json:"ok"`
	Failed int            `json:"failed"`
	By     map[string]int `json:"by"` // cluster -> answers
	Error  string         `json:"error,omitempty"`
}

// showSpread waits until all clusters answer and every request is answered.
func (b *builder) showSpread(ctx context.Context, c Cluster, url string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, demoTimeout, fmt.Errorf("not within %s", demoTimeout))
	defer cancel()
	var got Answers
	err := poll(ctx, "echo to be answered by every cluster", func() (bool, error) {
		var err error
		got, err = b.get(ctx, c.Name+"/client", url, demoRequests)
		return err == nil && got.OK == demoRequests && len(got.By) == len(b.state.Clusters), err
	})
	if err != nil {
		return "", fmt.Errorf("%w; last seen: %s", err, got)
	}
	return got.String(), nil
}

// showIPv6 is showSpread by the service's IPv6 address.
func (b *builder) showIPv6(ctx context.Context, c Cluster) (string, error) {
	var vip netip.Addr
	err := withMesh(ctx, c.Socket, func(ctx context.Context, m hawserv1.MeshClient) error {
		r, err := m.ListServices(ctx, &hawserv1.ListServicesRequest{})
		for _, s := range r.GetServices() {
			for _, text := range s.GetVips() {
				if a, err := netip.ParseAddr(text); err == nil && a.Is6() && s.GetNamespace() == demoNamespace && s.GetName() == "echo" {
					vip = a
				}
			}
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("list services of %s: %w", c.Name, err)
	}
	if !vip.IsValid() {
		return "", fmt.Errorf("service %s/echo of %s has no IPv6 address", demoNamespace, c.Name)
	}
	return b.showSpread(ctx, c, fmt.Sprintf("http://[%s]/", vip))
}

func (a Answers) String() string {
	var parts []string
	for _, name := range sortedKeys(a.By) {
		parts = append(parts, fmt.Sprintf("%s %d", name, a.By[name]))
	}
	s := fmt.Sprintf("%s  of %d", strings.Join(parts, "  "), a.OK+a.Failed)
	if a.Error != "" {
		s += ", last error: " + a.Error
	}
	return s
}

// get runs requests inside a pod.
func (l *Lab) get(ctx context.Context, target, url string, count int) (Answers, error) {
	cmd := exec.CommandContext(ctx, l.state.Binaries.Hawser, "lab", "workload", "get",
		"--count", fmt.Sprint(count), "--request-timeout", "1s", url)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := l.Start(target, cmd); err != nil {
		return Answers{}, err
	}
	err := cmd.Wait()
	var a Answers
	if jsonErr := json.Unmarshal(out.Bytes(), &a); jsonErr != nil {
		return Answers{}, fmt.Errorf("requests from %s: %w: %s", target, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return a, nil // failed requests are in the answer
}

// showPolicy applies the policy in one cluster, sees a client of the other
// dropped and the drop counted, and takes the policy away again.
func (b *builder) showPolicy(ctx context.Context, c, other Cluster) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, demoTimeout, fmt.Errorf("not within %s", demoTimeout))
	defer cancel()
	backend, ok := b.pod(c.Name, "echo-1")
	if !ok || len(backend.Addresses) == 0 {
		return "", b.noSuchPod(c.Name, "echo-1")
	}
	_, node, _ := findNode(b.state.Clusters, backend.Node)
	var urls []string
	for _, a := range backend.Addresses {
		urls = append(urls, "http://"+net.JoinHostPort(a, fmt.Sprint(echoPort))+"/")
	}
	before, err := policyDrops(ctx, node)
	if err != nil {
		return "", err
	}
	b.trap("policy of " + c.Name)
	err = withMesh(ctx, c.Socket, func(ctx context.Context, m hawserv1.MeshClient) error {
		_, err := m.ApplyPolicy(ctx, &hawserv1.ApplyPolicyRequest{Source: demoPolicy})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("apply policy in %s: %w", c.Name, err)
	}
	if err := b.waitAnswered(ctx, other.Name+"/client", urls, false); err != nil {
		return "", err
	}
	after, err := policyDrops(ctx, node)
	if err != nil {
		return "", err
	}
	if after <= before {
		return "", fmt.Errorf("%s/client got no answer from %v, but %s counted no drop by policy", other.Name, urls, node.Name)
	}
	if err := b.waitAnswered(ctx, c.Name+"/client", urls, true); err != nil {
		return "", fmt.Errorf("the policy allows it: %w", err)
	}
	err = withMesh(ctx, c.Socket, func(ctx context.Context, m hawserv1.MeshClient) error {
		_, err := m.DeletePolicy(ctx, &hawserv1.DeletePolicyRequest{Source: demoPolicy})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("delete policy in %s: %w", c.Name, err)
	}
	return "dropped: policy denied (as it should)", b.waitAnswered(ctx, other.Name+"/client", urls, true)
}

// waitAnswered waits until all urls are answered, or none.
func (b *builder) waitAnswered(ctx context.Context, target string, urls []string, want bool) error {
	for _, url := range urls {
		var got Answers
		err := poll(ctx, fmt.Sprintf("%s → %s answered: %v", target, url, want), func() (bool, error) {
			var err error
			got, err = b.get(ctx, target, url, 1)
			return (got.OK == 1) == want, err
		})
		if err != nil {
			return fmt.Errorf("%w; last seen: %s", err, got)
		}
	}
	return nil
}

// policyDrops counts the packets that a node dropped by policy.
func policyDrops(ctx context.Context, n Node) (uint64, error) {
	var sum uint64
	err := withNode(ctx, n.Socket, func(ctx context.Context, c hawserv1.NodeClient) error {
		r, err := c.ListDrops(ctx, &hawserv1.ListDropsRequest{})
		for _, d := range r.GetDrops() {
			if strings.Contains(strings.ToLower(d.GetReason()), "policy") {
				sum += d.GetPackets()
			}
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("count drops of %s: %w", n.Name, err)
	}
	return sum, nil
}
