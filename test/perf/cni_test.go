// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/nsthread"
	"github.com/hawser-mesh/hawser/lab"
	"github.com/hawser-mesh/hawser/lab/netns"
)

const cniAdds = 100

// sandbox is a pod as a container runtime makes it: a namespace and libcni.
type sandbox struct {
	t      *testing.T
	id     string
	path   string
	labels map[string]string
	cni    *libcni.CNIConfig
	socket string
}

func newSandbox(t *testing.T, node lab.Node, n int, labels map[string]string) *sandbox {
	t.Helper()
	dir, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	s := &sandbox{
		t: t, id: fmt.Sprintf("hwperf%d-%d", os.Getpid(), n), labels: labels, socket: node.Socket,
		cni: libcni.NewCNIConfigWithCacheDir([]string{dir}, t.TempDir(), nil),
	}
	s.path = filepath.Join("/run/netns", s.id)
	if err := netns.Create(s.path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeNetns(t, s.path) })
	return s
}

func (s *sandbox) config() (*libcni.NetworkConfigList, *libcni.RuntimeConf) {
	var labels []map[string]string
	for k, v := range s.labels {
		labels = append(labels, map[string]string{"key": k, "value": v})
	}
	raw, err := json.Marshal(map[string]any{"cniVersion": "1.1.0", "name": "hawser", "plugins": []any{map[string]any{
		"type": "hawser-cni", "socket": s.socket, "args": map[string]any{"cni": map[string]any{"labels": labels}},
	}}})
	if err != nil {
		s.t.Fatal(err)
	}
	conf, err := libcni.NetworkConfFromBytes(raw)
	if err != nil {
		s.t.Fatal(err)
	}
	return conf, &libcni.RuntimeConf{
		ContainerID: s.id, NetNS: s.path, IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", s.id}},
	}
}

// add returns what ADD took.
func (s *sandbox) add(ctx context.Context) time.Duration {
	s.t.Helper()
	conf, rt := s.config()
	start := time.Now()
	res, err := s.cni.AddNetworkList(ctx, conf, rt)
	took := time.Since(start)
	if err != nil {
		s.t.Fatalf("ADD: %v", err)
	}
	if _, err := current.NewResultFromResult(res); err != nil {
		s.t.Fatal(err)
	}
	return took
}

func (s *sandbox) del(ctx context.Context) time.Duration {
	s.t.Helper()
	conf, rt := s.config()
	start := time.Now()
	if err := s.cni.DelNetworkList(ctx, conf, rt); err != nil {
		s.t.Fatalf("DEL: %v", err)
	}
	return time.Since(start)
}

// echoed sends datagrams until one comes back.
func (s *sandbox) echoed(to netip.AddrPort) {
	s.t.Helper()
	var c net.Conn
	err := nsthread.InNetns(s.path, func() (err error) {
		c, err = net.Dial("udp4", to.String())
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	const again = 500 * time.Microsecond
	one := make([]byte, 1)
	for deadline := time.Now().Add(within); time.Now().Before(deadline); {
		_, _ = c.Write(one)
		_ = c.SetReadDeadline(time.Now().Add(again))
		if _, err := c.Read(one); err == nil {
			return
		}
	}
	s.t.Fatalf("no answer from %s", to)
}

// echoUDP answers every datagram in a namespace until the test ends.
func echoUDP(t *testing.T, ns string, at netip.AddrPort) {
	t.Helper()
	var c net.PacketConn
	err := nsthread.InNetns(ns, func() (err error) {
		c, err = net.ListenPacket("udp4", at.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:n], from)
		}
	}()
}

// pause lets the kernel finish what a deletion left to do later, and for a time
// of no fixed length: most of an addition is waiting for grace periods, which
// follow the timer's ticks, and so would additions in a row.
func pause() { time.Sleep(20*time.Millisecond + rand.N(20*time.Millisecond)) }

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// TestPerfCNI measures adding pods through the plugin, up to their first packet
// that a pod on another node answers under policy.
func TestPerfCNI(t *testing.T) {
	r := newReport(t, "cni", "adding a pod: hawser-cni by libcni, real agent and etcd (no fsync); first packet: UDP to a pod on the other node, allowed by its policy")
	s, l := hawserShape(t)
	node := l.Clusters()[0].Members[0]
	to := netip.AddrPortFrom(s.addr, udpPort)
	echoUDP(t, s.server, to)
	kinds := []struct {
		name   string
		labels func(n int) map[string]string
	}{
		{"labels known", func(int) map[string]string { return map[string]string{"app": "client"} }},
		{"labels new", func(n int) map[string]string {
			return map[string]string{"app": "client", "pod": fmt.Sprint(n)}
		}},
	}
	adds, firsts, dels := map[string][]float64{}, map[string][]float64{}, []float64(nil)
	for n := range 2 * cniAdds {
		kind := kinds[n%len(kinds)]
		box := newSandbox(t, node, n, kind.labels(n))
		start := time.Now()
		took := box.add(t.Context())
		box.echoed(to)
		firsts[kind.name] = append(firsts[kind.name], millis(time.Since(start)))
		adds[kind.name] = append(adds[kind.name], millis(took))
		dels = append(dels, millis(box.del(t.Context())))
		pause()
	}
	for _, k := range kinds {
		r.addOps("CNI ADD, "+k.name, "ms", "", adds[k.name])
		r.addOps("CNI ADD to first allowed packet, "+k.name, "ms", "p50 < 15 ms", firsts[k.name])
	}
	r.addOps("CNI DEL", "ms", "", dels)
	cniParts(t, r, node)
	r.finish(t)
}

// cniParts measures what an ADD is made of: starting the plugin at all, and the
// agent's part.
func cniParts(t *testing.T, r *report, node lab.Node) {
	t.Helper()
	var version, agent []float64
	client := hawserv1.NewNodeClient(onSocket(t, node.Socket))
	for n := range cniAdds {
		box := newSandbox(t, node, 1000+n, nil)
		conf, _ := box.config()
		start := time.Now()
		if _, err := box.cni.ValidateNetworkList(t.Context(), conf); err != nil {
			t.Fatal(err)
		}
		version = append(version, millis(time.Since(start)))
		start = time.Now()
		_, err := client.AddEndpoint(t.Context(), &hawserv1.AddEndpointRequest{
			ContainerId: box.id, Netns: box.path, Ifname: "eth0", Namespace: "default", Name: box.id,
			Labels: []string{"app=client"},
		})
		agent = append(agent, millis(time.Since(start)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.DeleteEndpoint(t.Context(), &hawserv1.DeleteEndpointRequest{ContainerId: box.id, Ifname: "eth0"}); err != nil {
			t.Fatal(err)
		}
		pause()
	}
	r.addOps("part: plugin's VERSION (a process and nothing else)", "ms", "", version)
	r.addOps("part: AddEndpoint on the agent's socket, labels known", "ms", "", agent)
}
