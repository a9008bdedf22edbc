// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// write stores a record as it is.
func (s *Server) write(t *testing.T, k kvstore.Key, m proto.Message) {
	t.Helper()
	value, err := kvstore.Encode(k, m)
	if err == nil {
		_, err = s.kv.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(k.String(), value)}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (s *Server) writeNode(t *testing.T, name, cidr string) {
	t.Helper()
	addr := "192.168.1." + name[1:]
	s.write(t, kvstore.NewKey(kvstore.State, "east", kvstore.KindNode, name), &keyspacev1.Node{
		Name: name, Cluster: "east", TunnelAddress: addr, PodCidrs: []string{cidr},
		Addresses: []*keyspacev1.NodeAddress{{Type: keyspacev1.NodeAddress_TYPE_INTERNAL, Ip: addr}},
	})
}

// writeBackend stores one backend of demo/web on a node, as its agent does.
func (s *Server) writeBackend(t *testing.T, node, ip string, state keyspacev1.Backend_State) {
	t.Helper()
	s.write(t, kvstore.NewKey(kvstore.Local, "east", kvstore.KindSlice, "demo", "web", node), &keyspacev1.BackendSlice{
		Namespace: "demo", Service: "web", Name: node,
		Backends: []*keyspacev1.Backend{{Ip: ip, Node: node, State: state, Ports: []*keyspacev1.BackendPort{{Protocol: keyspacev1.Protocol_PROTOCOL_TCP, Port: 8080}}}},
	})
}

func drainOf(t *testing.T, s *Server, node string) string {
	t.Helper()
	r, err := s.ListNodes(t.Context(), &hawserv1.ListNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range r.GetNodes() {
		if n.GetName() == node {
			return n.GetDrain()
		}
	}
	t.Fatalf("no node %s", node)
	return ""
}

// A node is draining until its agent has taken its backends out; the last ones of
// a service stay unless that is forced.
func TestDrainNode(t *testing.T) {
	s := start(t, testConfig(t))
	if _, err := apply(t, s, manifest("web")); err != nil {
		t.Fatal(err)
	}
	s.writeNode(t, "n1", "10.1.1.0/24")
	s.writeNode(t, "n2", "10.1.2.0/24")
	s.writeBackend(t, "n1", "10.1.1.5", keyspacev1.Backend_STATE_ACTIVE)
	drain := func(node string, undrain, force bool) (*hawserv1.DrainNodeResponse, error) {
		return s.DrainNode(t.Context(), &hawserv1.DrainNodeRequest{Node: node, Undrain: undrain, Force: force})
	}
	if _, err := drain("n9", false, false); status.Code(err) != codes.NotFound {
		t.Errorf("a node that is not there: %v", err)
	}
	_, err := drain("n1", false, false)
	wantRefusal(t, err, "only backends that take new connections for demo/web")
	s.writeBackend(t, "n2", "10.1.2.5", keyspacev1.Backend_STATE_MAINTENANCE)
	_, err = drain("n1", false, false)
	wantRefusal(t, err, "only backends") // n2's takes none
	s.writeBackend(t, "n2", "10.1.2.5", keyspacev1.Backend_STATE_ACTIVE)
	r, err := drain("n1", false, false)
	if err != nil || r.GetDrain() != "draining" || r.GetBackends() != 1 || r.GetPresent() || !r.GetChanged() {
		t.Fatalf("drain: %v, %v", r, err)
	}
	if a, b := drainOf(t, s, "n1"), drainOf(t, s, "n2"); a != "draining" || b != "" {
		t.Errorf("n1 is %q, n2 %q", a, b)
	}
	s.writeBackend(t, "n1", "10.1.1.5", keyspacev1.Backend_STATE_MAINTENANCE)
	if r, err := drain("n1", false, false); err != nil || r.GetDrain() != "drained" || r.GetChanged() {
		t.Errorf("drain again: %v, %v", r, err)
	}
	if got := drainOf(t, s, "n1"); got != "drained" {
		t.Errorf("n1 is %q", got)
	}
	if r, err := drain("n1", true, false); err != nil || r.GetDrain() != "" || !r.GetChanged() {
		t.Errorf("undrain: %v, %v", r, err)
	}
	if got := drainOf(t, s, "n1"); got != "" {
		t.Errorf("n1 is %q after undrain", got)
	}
	s.writeBackend(t, "n2", "10.1.2.5", keyspacev1.Backend_STATE_QUARANTINED)
	if _, err := drain("n1", false, true); err != nil {
		t.Errorf("by force: %v", err)
	}
}
