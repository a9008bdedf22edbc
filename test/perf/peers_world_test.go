// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"fmt"
	"net/netip"
	"strconv"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/kvstore"
)

// world is a made-up cluster: what stands below its state/ is a function of it.
type world struct {
	Name string
	ID   uint32

	Nodes, Identities, IPs, Services, Backends int // backends of each service
}

// bigWorld is as large as the cluster that others were measured with.
func bigWorld(name string, id uint32) world {
	return world{Name: name, ID: id, Nodes: 1000, Identities: 5000, IPs: 50000, Services: 1000, Backends: 10}
}

// keys is the number of keys: an identity has two, by number and by labels; a
// service's backends are a slice.
func (w world) keys() int { return w.Nodes + 2*w.Identities + w.IPs + 2*w.Services }

func (w world) podCIDR() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(w.ID), 0, 0}), 16)
}

// nodeCIDR is a /22 of 100.64.0.0/10.
func (w world) nodeCIDR() netip.Prefix { return netip.PrefixFrom(w.node(0), 22) }

func (w world) serviceCIDR() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(w.ID), 0, 0}), 16)
}

// node is the n-th address of nodeCIDR.
func (w world) node(n int) netip.Addr {
	x := 100<<24 | 64<<16 | w.ID<<10 | uint32(n)
	return netip.AddrFrom4([4]byte{byte(x >> 24), byte(x >> 16), byte(x >> 8), byte(x)})
}

// pod is the n-th address of pods.
func (w world) pod(n int) netip.Addr {
	const first = 20 // the /24s below are for pods that are real
	return netip.AddrFrom4([4]byte{10, byte(w.ID), byte(first + n/250), byte(n%250 + 1)})
}

// cluster is what it says of itself at a join.
func (w world) cluster(version string) *keyspacev1.Cluster {
	return &keyspacev1.Cluster{
		Name: w.Name, Id: w.ID, Version: version,
		PodCidrs: []string{w.podCIDR().String()}, NodeCidrs: []string{w.nodeCIDR().String()}, ServiceCidrs: []string{w.serviceCIDR().String()},
		Mesh: &keyspacev1.MeshParameters{ClusterBits: 8, TunnelProtocol: "vxlan", TunnelPort: 8472, Encryption: "off"},
	}
}

// each visits all records in the order in which a cluster sends them.
func (w world) each(put func(kvstore.Key, proto.Message) error) error {
	var failed error
	do := func(count int, record func(n int) (kvstore.Key, proto.Message)) {
		for n := 0; n < count && failed == nil; n++ {
			failed = put(record(n))
		}
	}
	do(1, func(int) (kvstore.Key, proto.Message) {
		return kvstore.NewKey(kvstore.State, w.Name, kvstore.KindCluster), w.cluster("")
	})
	do(w.Identities, w.identity)
	do(w.Identities, w.identityRef)
	do(w.Nodes, w.nodeRecord)
	do(w.IPs, func(n int) (kvstore.Key, proto.Message) { return w.ip(n, n, 1) })
	do(w.Services, w.service)
	do(w.Services, w.slice)
	return failed
}

func (w world) labels(n int) labels.Set {
	set, err := labels.ParseSet([]string{
		"k8s:app=app-" + strconv.Itoa(n), "k8s:tier=" + strconv.Itoa(n%3), "k8s:team=" + strconv.Itoa(n%17),
		labels.Mesh + ":" + labels.ClusterKey + "=" + w.Name, labels.Mesh + ":" + labels.NamespaceKey + "=ns-" + strconv.Itoa(n%20),
	}, labels.CNI)
	if err != nil {
		panic(err) // they are constant
	}
	return set
}

func (w world) identity(n int) (kvstore.Key, proto.Message) {
	number := identityNumber(w.ID, n)
	return kvstore.NewKey(kvstore.State, w.Name, kvstore.KindIdentity, kvstore.NumberName(number)),
		&keyspacev1.Identity{Number: number, Labels: w.labels(n).Strings(), UpdatedAt: 1}
}

func (w world) identityRef(n int) (kvstore.Key, proto.Message) {
	return kvstore.NewKey(kvstore.State, w.Name, kvstore.KindIdentityLabels, w.labels(n).Hash()),
		&keyspacev1.IdentityRef{Number: identityNumber(w.ID, n), UpdatedAt: 1}
}

func (w world) nodeRecord(n int) (kvstore.Key, proto.Message) {
	name := "node-" + strconv.Itoa(n)
	return kvstore.NewKey(kvstore.State, w.Name, kvstore.KindNode, name), &keyspacev1.Node{
		Name: name, Cluster: w.Name, TunnelAddress: w.node(n + 1).String(), Mtu: 1500, UpdatedAt: 1,
		Addresses: []*keyspacev1.NodeAddress{{Type: keyspacev1.NodeAddress_TYPE_INTERNAL, Ip: w.node(n + 1).String()}},
	}
}

// ip is the n-th address, with the i-th identity, written at (Unix ns).
func (w world) ip(n, i int, at int64) (kvstore.Key, proto.Message) {
	prefix := netip.PrefixFrom(w.pod(n%w.IPs), 32).String()
	return kvstore.NewKey(kvstore.State, w.Name, kvstore.KindIP, prefix), &keyspacev1.IPEntry{
		Prefix: prefix, Identity: identityNumber(w.ID, i%w.Identities), Node: "node-" + strconv.Itoa(n%w.Nodes),
		TunnelAddress: w.node(n%w.Nodes + 1).String(),
		Namespace:     "ns-" + strconv.Itoa(n%20), Workload: "pod-" + strconv.Itoa(n%w.IPs), UpdatedAt: at,
	}
}

func (w world) service(n int) (kvstore.Key, proto.Message) {
	ns, name := "ns-"+strconv.Itoa(n%20), "svc-"+strconv.Itoa(n)
	return kvstore.NewKey(kvstore.State, w.Name, kvstore.KindService, ns, name), &keyspacev1.Service{
		Namespace: ns, Name: name, Id: identityNumber(w.ID, n), Global: true, Shared: true, Type: "ClusterIP", UpdatedAt: 1,
		Ports:    []*keyspacev1.ServicePort{{Name: "http", Protocol: keyspacev1.Protocol_PROTOCOL_TCP, Port: 80, Target: "8080"}},
		Selector: map[string]string{"app": name},
	}
}

func (w world) slice(n int) (kvstore.Key, proto.Message) {
	ns, name := "ns-"+strconv.Itoa(n%20), "svc-"+strconv.Itoa(n)
	s := &keyspacev1.BackendSlice{Namespace: ns, Service: name, Name: name + "-0", UpdatedAt: 1}
	for b := range w.Backends {
		at := n*w.Backends + b
		s.Backends = append(s.Backends, &keyspacev1.Backend{
			Ip: w.pod(at % w.IPs).String(), Node: "node-" + strconv.Itoa(at%w.Nodes), Workload: "pod-" + strconv.Itoa(at%w.IPs),
			Ports: []*keyspacev1.BackendPort{{Name: "http", Protocol: keyspacev1.Protocol_PROTOCOL_TCP, Port: 8080}},
		})
	}
	return kvstore.NewKey(kvstore.State, w.Name, kvstore.KindSlice, ns, name, name+"-0"), s
}

// remotes are worlds named r001, r002, … with cluster ids from 1.
func remotes(count int, shape world) (out []world) {
	for n := range count {
		w := shape
		w.Name, w.ID = fmt.Sprintf("r%03d", n+1), uint32(n+1)
		out = append(out, w)
	}
	return out
}
