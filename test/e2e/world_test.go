// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"sigs.k8s.io/yaml"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/clicontext"
	"github.com/hawser-mesh/hawser/lab"
)

// world is a running lab with open connections to all its programs.
type world struct {
	kind    string
	lab     *lab.Lab
	context string // file for the CLI
	nodes   map[string]*node
	mesh    map[string]hawserv1.MeshClient // by cluster
	conns   []*grpc.ClientConn
	stop    context.CancelFunc
	events  *events
	pods    []string // that belong to it, CLUSTER/NAME
}

type node struct {
	lab.Node
	hawserv1.NodeClient
}

// briefly is the --expire-after of labs that forget soon.
const briefly = "40s"

// callTimeout bounds what is asked of a program, on a machine that is busy.
const callTimeout = 30 * time.Second

// specs are the kinds of labs; the first letters differ.
func specOf(kind string) (lab.Spec, lab.Options, error) {
	name := labName(kind)
	switch kind {
	case "demo": // shared: two clusters of two nodes with the demo
		s := withEtcd(lab.NewSpec(name, 2, 2))
		s.Agent = map[string]string{"dns-upstream": fmt.Sprintf("172.30.1.1:%d", upstreamPort)}
		return s, lab.Options{Demo: true}, nil
	case "pair": // two clusters of one node, empty
		return withEtcd(lab.NewSpec(name, 2, 1)), lab.Options{}, nil
	case "shared": // two clusters of two nodes on one etcd, with the demo
		spec := lab.NewSpec(name, 2, 2)
		spec.SharedEtcd = true
		return spec, lab.Options{Demo: true}, nil
	case "alone": // one cluster of one node
		return lab.NewSpec(name, 1, 1), lab.Options{}, nil
	case "crowd": // one cluster of five nodes, which forgets them soon
		s := lab.NewSpec(name, 1, 5)
		s.APIServer = map[string]string{"departed-after": "6s"}
		return s, lab.Options{}, nil
	case "given": // one cluster of two nodes, which gives them their pod CIDRs
		s := lab.NewSpec(name, 1, 2)
		s.Agent = map[string]string{"pod-cidr": ""}
		return s, lab.Options{}, nil
	case "young": // the same with IPv6, and room for two pods on each node
		s := lab.NewSpec(name, 1, 2)
		s.IPv6 = true
		s.Agent = map[string]string{"pod-cidr": ""}
		s.APIServer = map[string]string{"pod-cidr-size-ipv6": "126"}
		return s, lab.Options{}, nil
	case "nine", "ten": // two clusters of one node with ids above 255, the demo
		s := lab.NewSpec(name, 2, 1)
		s.ClusterBits, s.Clusters[0].ID, s.Clusters[1].ID = 9, 300, 511
		if kind == "ten" {
			s.ClusterBits, s.Clusters[1].ID = 10, 1023
		}
		return s, lab.Options{Demo: true}, nil
	case "ipv6": // two clusters of two nodes with IPv6 and the demo
		s := withEtcd(lab.NewSpec(name, 2, 2))
		s.IPv6 = true
		return s, lab.Options{Demo: true}, nil
	case "kernel": // the same, the clusters with different makes of the tunnel's headers
		s := withEtcd(lab.NewSpec(name, 2, 2))
		s.IPv6 = true
		for i, way := range []string{"netdev", "ebpf"} {
			s.Clusters[i].Agent = map[string]string{"tunnel-datapath": way}
		}
		return s, lab.Options{Demo: true}, nil
	case "modes": // two clusters of one node that deny by default, and whose selectors mean the mesh
		s := withEtcd(lab.NewSpec(name, 2, 1))
		s.Agent = map[string]string{"policy-enforcement": "always", "policy-default-scope": "mesh"}
		return s, lab.Options{}, nil
	case "kube": // a cluster of three nodes, of which the second has a Kubernetes API server; another one is at east/ctl
		s := lab.NewSpec(name, 1, 3)
		s.APIServer = map[string]string{"kube-apiserver-address": "172.30.1.2,172.30.1.12/32"}
		return s, lab.Options{}, nil
	case "listed": // two clusters of one node that read a file of peers
		s := lab.NewSpec(name, 2, 1)
		s.APIServer = map[string]string{"peers-file": "{data-dir}/peers.yaml"}
		return s, lab.Options{}, nil
	case "brief": // two clusters of one node that forget identities soon
		s := lab.NewSpec(name, 2, 1)
		s.ClusterBits = 10 // numbers are few
		s.APIServer = map[string]string{"identity-gc-interval": "500ms", "expire-after": briefly}
		s.Agent = map[string]string{"labels": "!rev"}
		return s, lab.Options{}, nil
	}
	return lab.Spec{}, lab.Options{}, fmt.Errorf("no kind of lab %q: demo, pair, shared, alone, crowd, given, young, nine, ten, ipv6, kernel, modes, kube, listed or brief", kind)
}

// sharedEtcd is the environment variable that puts the clusters of every lab on
// one etcd: the mesh must be the same. Scripts about the federation's stream skip
// themselves then ([shared]).
const sharedEtcd = "HAWSER_E2E_SHARED_ETCD"

// tunnelDatapath is the environment variable that has the nodes of every lab make the
// tunnel's headers in this way, where the lab does not say itself.
const tunnelDatapath = "HAWSER_E2E_TUNNEL"

func withEtcd(s lab.Spec) lab.Spec {
	s.SharedEtcd = os.Getenv(sharedEtcd) != ""
	return s
}

// cmdLab is `lab KIND`: the script runs in a lab of that kind, made when there
// is none. `lab down` removes it before the script's end.
func cmdLab(s *script, args []string) (string, error) {
	if len(args) != 1 {
		return "", usage("lab demo|pair|shared|alone|crowd|given|young|nine|ten|ipv6|kernel|modes|kube|listed|brief|down")
	}
	if args[0] == "down" {
		w := s.world
		s.world = nil
		delete(s.labs, w.kind)
		return "", w.close()
	}
	w, ok := s.labs[args[0]]
	if !ok {
		var err error
		if w, err = newWorld(s.suite, args[0]); err != nil {
			return "", err
		}
		s.labs[args[0]] = w
	}
	s.world, s.events, s.eventsBefore = w, w.events, w.events.mark()
	s.ts.Setenv("LAB", w.lab.Name())
	s.ts.Setenv("RUN", filepath.Join(lab.RunDir, w.lab.Name()))
	s.ts.Defer(func() { s.leave() })
	return "", nil
}

func newWorld(s *suite, kind string) (*world, error) {
	spec, opts, err := specOf(kind)
	if err != nil {
		return nil, err
	}
	if way := os.Getenv(tunnelDatapath); way != "" {
		spec.Agent = maps.Clone(spec.Agent)
		if spec.Agent == nil {
			spec.Agent = map[string]string{}
		}
		spec.Agent["tunnel-datapath"] = way
	}
	opts.Binaries = s.bin
	l, err := lab.Up(context.Background(), spec, opts)
	if err != nil {
		return nil, errors.Join(err, down(spec.Name))
	}
	ctx, stop := context.WithCancel(context.Background())
	w := &world{kind: kind, lab: l, nodes: map[string]*node{}, mesh: map[string]hawserv1.MeshClient{}, stop: stop, events: &events{}}
	for _, p := range l.Pods() {
		w.pods = append(w.pods, p.Cluster+"/"+p.Name)
	}
	if err = w.connect(); err == nil {
		err = w.writeContext(s.dir)
	}
	if err == nil {
		for _, n := range w.nodes {
			go w.events.follow(ctx, n)
		}
		err = w.events.ready(len(w.nodes))
	}
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (w *world) connect() error {
	dial := func(socket string) (*grpc.ClientConn, error) {
		c, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: quickly(), MinConnectTimeout: time.Second}),
			grpc.WithDefaultCallOptions(grpc.WaitForReady(true))) // it may have been started anew just now
		w.conns = append(w.conns, c)
		return c, err
	}
	for _, c := range w.lab.Clusters() {
		conn, err := dial(c.Socket)
		if err != nil {
			return err
		}
		w.mesh[c.Name] = hawserv1.NewMeshClient(conn)
		for _, n := range c.Members {
			if conn, err = dial(n.Socket); err != nil {
				return err
			}
			w.nodes[n.Name] = &node{n, hawserv1.NewNodeClient(conn)}
		}
	}
	return nil
}

// writeContext tells the CLI where the lab is, without making it the user's
// current context.
func (w *world) writeContext(dir string) error {
	c := &clicontext.Context{Name: w.lab.Name()}
	for _, cl := range w.lab.Clusters() {
		entry := clicontext.Cluster{
			Name: cl.Name, Socket: cl.Socket,
			Etcd: &clicontext.Etcd{Endpoint: cl.EtcdEndpoint(), TLSDir: cl.AdminTLS, Netns: cl.Netns},
		}
		for _, n := range cl.Members {
			entry.Nodes = append(entry.Nodes, clicontext.Node{Name: n.Name, Socket: n.Socket})
		}
		c.Clusters = append(c.Clusters, entry)
	}
	raw, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	w.context = filepath.Join(dir, w.lab.Name()+".yaml")
	return os.WriteFile(w.context, raw, 0o600)
}

func (w *world) close() error {
	w.stop()
	for _, c := range w.conns {
		if c != nil {
			_ = c.Close()
		}
	}
	return down(w.lab.Name())
}

// leave ends what the script runs and puts the lab back as it was. After a
// failed script nobody knows how it is: it is made anew.
func (s *script) leave() {
	w := s.world
	for _, l := range s.loads {
		l.kill()
	}
	for _, o := range s.streams {
		o.conn.Close()
	}
	if w == nil {
		return
	}
	if !s.t.Failed() {
		err := w.restore()
		if err == nil {
			return
		}
		s.t.Errorf("put the lab back: %v", err)
	}
	delete(s.labs, w.kind)
	if err := w.close(); err != nil {
		s.t.Errorf("%v", err)
	}
}

// restore removes the policies, services and pods that a script made.
func (w *world) restore() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*callTimeout)
	defer cancel()
	var errs []error
	for _, m := range w.mesh {
		ps, err := m.ListPolicies(ctx, &hawserv1.ListPoliciesRequest{})
		errs = append(errs, err)
		for _, p := range ps.GetPolicies() {
			_, err := m.DeletePolicy(ctx, &hawserv1.DeletePolicyRequest{Namespace: p.GetNamespace(), Name: p.GetName()})
			errs = append(errs, err)
		}
		ss, err := m.ListServices(ctx, &hawserv1.ListServicesRequest{})
		errs = append(errs, err)
		for _, v := range ss.GetServices() {
			if slices.Contains([]string{"demo", "ipv6", "kernel"}, w.kind) && v.GetNamespace() == "demo" && v.GetName() == "echo" {
				continue
			}
			_, err := m.DeleteService(ctx, &hawserv1.DeleteServiceRequest{Namespace: v.GetNamespace(), Name: v.GetName()})
			errs = append(errs, err)
		}
	}
	l, err := lab.Open(w.lab.Name())
	if err != nil {
		return err
	}
	var have []string
	for _, p := range l.Pods() {
		id := p.Cluster + "/" + p.Name
		if have = append(have, id); !slices.Contains(w.pods, id) {
			errs = append(errs, lab.DeletePod(ctx, w.lab.Name(), p.Cluster, p.Name))
		}
	}
	for _, id := range w.pods {
		if !slices.Contains(have, id) {
			errs = append(errs, fmt.Errorf("pod %s is gone", id))
		}
	}
	return errors.Join(append(errs, w.unruled(ctx))...)
}

// unruled waits until no node enforces a policy any more.
func (w *world) unruled(ctx context.Context) error {
	return within(callTimeout, func() error {
		for name, n := range w.nodes {
			r, err := n.Status(ctx, &hawserv1.StatusRequest{})
			if err != nil {
				return fmt.Errorf("status of %s: %w", name, err)
			}
			if len(r.GetPolicies()) > 0 || !r.GetPoliciesSettled() {
				return fmt.Errorf("%s still enforces %d policies", name, len(r.GetPolicies()))
			}
		}
		return nil
	})
}

// place is a network namespace of the lab and the address that it is reached at.
type place struct {
	netns string
	addr  netip.Addr
	pod   *lab.Pod // nil for others
	node  string
	bound bool // NODE=ADDRESS: asks from this address
}

// six is what a place's name ends with when its IPv6 address is meant.
const six = "@6"

// place finds CLUSTER/POD, CLUSTER/ctl, a node, fabric, or (without namespace)
// an address. A pod's or node's name that ends with @6 is it by IPv6.
func (s *script) place(name string) (place, error) {
	if s.world == nil {
		return place{}, errors.New("no lab: start the script with `lab demo`")
	}
	if a, err := netip.ParseAddr(name); err == nil {
		return place{addr: a}, nil
	}
	if p, ok := s.externals[name]; ok {
		return p, nil
	}
	if node, text, ok := strings.Cut(name, "="); ok {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return place{}, err
		}
		p, err := s.place(node)
		p.addr, p.bound = a, true
		return p, err
	}
	name, has6 := strings.CutSuffix(name, six)
	// Pods come and go by the CLI: the record on disk has them.
	l, err := lab.Open(s.world.lab.Name())
	if err != nil {
		return place{}, err
	}
	for _, c := range l.Clusters() {
		if name == c.Name+"/ctl" {
			return place{netns: c.Netns, addr: c.Control}, nil
		}
		if name == "fabric" {
			return place{netns: filepath.Join(filepath.Dir(c.Netns), "hwl-"+l.Name()+"-fabric"), addr: c.Gateway}, nil
		}
		for _, n := range c.Members {
			if n.Name != name {
				continue
			}
			if has6 {
				return place{netns: n.Netns, addr: n.PodCIDR6.Addr().Next(), node: n.Name}, nil
			}
			return place{netns: n.Netns, addr: n.Address, node: n.Name}, nil
		}
	}
	cluster, pod, _ := strings.Cut(name, "/")
	for _, p := range l.Pods() {
		if p.Cluster != cluster || p.Name != pod {
			continue
		}
		for _, text := range p.Addresses {
			if a, err := netip.ParseAddr(text); err != nil || a.Is6() == has6 {
				return place{netns: p.Place.Netns, addr: a, pod: &p, node: p.Node}, err
			}
		}
	}
	return place{}, fmt.Errorf("%q is no pod, node, CLUSTER/ctl, fabric or address", name)
}
