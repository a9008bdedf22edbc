// SPDX-License-Identifier: Apache-2.0

package kvstore

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

// Each list takes as many as are allowed, and the record is refused for its size
// with one more.
func TestListsAreBounded(t *testing.T) {
	list := func(format string) func(int) []string {
		return func(n int) (out []string) {
			for i := range n {
				out = append(out, fmt.Sprintf(format, i/256, i%256))
			}
			return out
		}
	}
	prefixes, addrs := list("10.%d.%d.0/24"), list("10.1.%d.%d")
	cluster := func(c *keyspacev1.Cluster) record {
		c.Name, c.Id, c.Mesh = east, 1, &keyspacev1.MeshParameters{ClusterBits: 8}
		return record{key(KindCluster), c}
	}
	slice := func(backends, ports int) record {
		s := &keyspacev1.BackendSlice{Namespace: "demo", Service: "echo", Name: "n1"}
		for _, a := range addrs(backends) {
			b := &keyspacev1.Backend{Ip: a}
			for i := range ports {
				b.Ports = append(b.Ports, &keyspacev1.BackendPort{Port: uint32(i + 1)})
			}
			s.Backends = append(s.Backends, b)
		}
		return record{key(KindSlice, "demo", "echo", "n1"), s}
	}
	for name, c := range map[string]struct {
		most int
		of   func(n int) record
	}{
		"pod ranges of a cluster":     {MaxRanges, func(n int) record { return cluster(&keyspacev1.Cluster{PodCidrs: prefixes(n)}) }},
		"node ranges of a cluster":    {MaxRanges, func(n int) record { return cluster(&keyspacev1.Cluster{NodeCidrs: prefixes(n)}) }},
		"service ranges of a cluster": {MaxRanges, func(n int) record { return cluster(&keyspacev1.Cluster{ServiceCidrs: prefixes(n)}) }},
		"pod ranges of a node": {MaxNodeRanges, func(n int) record {
			return record{key(KindNode, "n1"), &keyspacev1.Node{Name: "n1", Cluster: east, PodCidrs: prefixes(n)}}
		}},
		"addresses of a node": {MaxAddresses, func(n int) record {
			r := &keyspacev1.Node{Name: "n1", Cluster: east}
			for _, a := range addrs(n) {
				r.Addresses = append(r.Addresses, &keyspacev1.NodeAddress{Ip: a})
			}
			return record{key(KindNode, "n1"), r}
		}},
		"labels of an identity": {MaxLabels, func(n int) record {
			r := &keyspacev1.Identity{Number: 65537, Labels: list("cni:l%03d%03d")(n - 1)}
			r.Labels = append(r.Labels, "mesh:cluster=east")
			return record{key(KindIdentity, "65537"), r}
		}},
		"named ports of an address": {MaxNamedPorts, func(n int) record {
			r := &keyspacev1.IPEntry{Prefix: "10.1.0.5/32", Identity: 65537, Node: "n1"}
			for i := range n {
				r.NamedPorts = append(r.NamedPorts, &keyspacev1.NamedPort{Name: fmt.Sprint("p", i), Port: uint32(i + 1)})
			}
			return record{key(KindIP, "10.1.0.5/32"), r}
		}},
		"ports of a service": {MaxPorts, func(n int) record {
			r := &keyspacev1.Service{Namespace: "demo", Name: "echo"}
			for i := range n {
				r.Ports = append(r.Ports, &keyspacev1.ServicePort{Name: fmt.Sprint("p", i), Port: uint32(i + 1)})
			}
			return record{key(KindService, "demo", "echo"), r}
		}},
		"addresses of a service": {MaxAddresses, func(n int) record {
			return record{key(KindService, "demo", "echo"), &keyspacev1.Service{Namespace: "demo", Name: "echo", Vips: addrs(n)}}
		}},
		"addresses of a service's number": {MaxAddresses, func(n int) record {
			return record{key(KindServiceID, "65540"), &keyspacev1.ServiceID{Number: 65540, Namespace: "demo", Name: "echo", Vips: addrs(n)}}
		}},
		"backends of a slice": {MaxBackends, func(n int) record { return slice(n, 1) }},
		"ports of a backend":  {MaxPorts, func(n int) record { return slice(2, n) }},
	} {
		for n, fits := range map[int]bool{c.most: true, c.most + 1: false} {
			r := c.of(n)
			raw, err := proto.Marshal(r.msg)
			if err != nil {
				t.Fatal(err)
			}
			_, err = eastIsOne(t).Decode(r.key, raw)
			var bad *BadRecord
			if fits && err != nil || !fits && (!errors.As(err, &bad) || bad.Reason != ReasonSize) {
				t.Errorf("%d %s, of which %d are allowed: %v", n, name, c.most, err)
			}
		}
	}
}
