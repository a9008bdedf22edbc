// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity/labels"
)

// MaxSlice is the most backends in one slice.
const MaxSlice = 100

// LocalEndpoint is a workload of this node that may serve.
type LocalEndpoint struct {
	Namespace, Name string
	Addr            netip.Addr
	Labels          labels.Set
	NamedPorts      []NamedPort
	State           keyspacev1.Backend_State
}

// NamedPort is a port of a workload that services may refer to by name.
type NamedPort struct {
	Name     string
	Port     uint16
	Protocol keyspacev1.Protocol
}

// LocalSlices are the backends that a node offers to a service, in slices of
// MaxSlice: the first is named like the node, further ones node~1, node~2, …
// None means that the node has no slice of the service. Equal input gives equal
// slices; UpdatedAt is the caller's.
//
// An endpoint serves when it is in the service's namespace and carries all
// labels of the selector, whatever their source, except labels that Hawser sets
// itself. A service without a selector has no backends.
func LocalSlices(s *keyspacev1.Service, node, zone string, endpoints []LocalEndpoint) []*keyspacev1.BackendSlice {
	var backends []*keyspacev1.Backend
	for _, e := range endpoints {
		if e.Namespace != s.GetNamespace() || !selects(s.GetSelector(), e.Labels) {
			continue
		}
		ports := e.ports(s.GetPorts())
		if len(ports) == 0 {
			continue
		}
		backends = append(backends, &keyspacev1.Backend{
			Ip: e.Addr.String(), Ports: ports, Node: node, Zone: zone, State: e.State,
			Workload: e.Namespace + "/" + e.Name,
		})
	}
	slices.SortFunc(backends, func(a, b *keyspacev1.Backend) int {
		return cmp.Or(cmp.Compare(a.GetIp(), b.GetIp()), cmp.Compare(a.GetWorkload(), b.GetWorkload()))
	})
	var out []*keyspacev1.BackendSlice
	for chunk := range slices.Chunk(backends, MaxSlice) {
		name := node
		if len(out) > 0 {
			name = fmt.Sprintf("%s~%d", node, len(out))
		}
		out = append(out, &keyspacev1.BackendSlice{
			Namespace: s.GetNamespace(), Service: s.GetName(), Name: name, Backends: chunk,
		})
	}
	return out
}

func selects(selector map[string]string, ls labels.Set) bool {
	for key, value := range selector {
		if !slices.ContainsFunc(ls, func(l labels.Label) bool {
			return l.Key == key && l.Value == value && l.Source != labels.Mesh && l.Source != labels.Namespace && l.Source != labels.Reserved
		}) {
			return false
		}
	}
	return len(selector) > 0
}

// ports resolves the targets of a service's ports. A port whose name the
// endpoint does not know is left out.
func (e LocalEndpoint) ports(ports []*keyspacev1.ServicePort) []*keyspacev1.BackendPort {
	var out []*keyspacev1.BackendPort
	for _, p := range ports {
		if number := e.target(p); number != 0 {
			out = append(out, &keyspacev1.BackendPort{
				Name: p.GetName(), Protocol: p.GetProtocol(), Port: uint32(number)})
		}
	}
	return out
}

func (e LocalEndpoint) target(p *keyspacev1.ServicePort) uint16 {
	if p.GetTarget() == "" {
		return uint16(p.GetPort())
	}
	if v, ok := portNumber(p.GetTarget()); ok {
		return v
	}
	for _, n := range e.NamedPorts {
		if n.Name == p.GetTarget() && n.Protocol == p.GetProtocol() {
			return n.Port
		}
	}
	return 0
}

// portNumber reports whether a text is made of digits, and the port it names;
// 0 when there is none of that number.
func portNumber(s string) (port uint16, isNumber bool) {
	for _, r := range s {
		if r < '0' || r > '9' {
			return 0, false
		}
	}
	if s == "" {
		return 0, false
	}
	v, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, true
	}
	return uint16(v), true
}
