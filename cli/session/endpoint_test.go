// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/played"
)

// hasEndpoints is an agent with endpoints.
type hasEndpoints struct {
	hawserv1.UnimplementedNodeServer
	rows []*hawserv1.Endpoint
}

func (h hasEndpoints) ListEndpoints(context.Context, *hawserv1.ListEndpointsRequest) (*hawserv1.ListEndpointsResponse, error) {
	return &hawserv1.ListEndpointsResponse{Endpoints: h.rows}, nil
}

// An endpoint is what operators call it; what may be several is told with all.
func TestEndpoint(t *testing.T) {
	row := func(id uint32, node, namespace, name string, addresses ...string) *hawserv1.Endpoint {
		return &hawserv1.Endpoint{Id: id, Cluster: "east", Node: node, Namespace: namespace, Name: name, Addresses: addresses}
	}
	n1, n2 := played.Socket(t), played.Socket(t)
	played.Agent(t, n1, hasEndpoints{rows: []*hawserv1.Endpoint{row(1, "n1", "demo", "web", "10.1.1.2", "fd00:1::2"), row(2, "n1", "demo", "db", "10.1.1.3")}})
	played.Agent(t, n2, hasEndpoints{rows: []*hawserv1.Endpoint{row(1, "n2", "prod", "web", "10.1.2.2")}})
	file := played.Context(t, "east", "/nowhere", "n1", n1, "n2", n2)
	for _, c := range []struct {
		cluster, node, what string
		want                string // node and id
		code                int
		says                string
	}{
		{"", "", "db", "n1 2", Done, ""},
		{"", "", "demo/web", "n1 1", Done, ""},
		{"", "", "east/prod/web", "n2 1", Done, ""},
		{"east", "", "east/prod/web", "n2 1", Done, ""},
		{"", "", "10.1.2.2", "n2 1", Done, ""},
		{"", "", "fd00:1:0::2", "n1 1", Done, ""},
		{"", "", "2", "n1 2", Done, ""},
		{"", "n2", "1", "n2 1", Done, ""},
		{"", "n2", "web", "n2 1", Done, ""},
		{"", "", "web", "", WrongUse, `"web" is more than one endpoint: demo/web (id 1 on n1), prod/web (id 1 on n2); give NAMESPACE/NAME, an address, or --node`},
		{"", "", "1", "", WrongUse, "demo/web (id 1 on n1), prod/web (id 1 on n2)"},
		{"", "", "nobody", "", No, `no endpoint "nobody"; see: hawser endpoint list`},
		{"", "n2", "demo/web", "", No, `no endpoint "demo/web"`},
		{"", "", "10.1.2.9", "", No, `no endpoint "10.1.2.9"`},
		{"west", "", "east/prod/web", "", WrongUse, `--cluster says "west"`},
		{"", "", "north/prod/web", "", WrongUse, `"north"`},
		{"", "", "", "", WrongUse, "empty"},
	} {
		s := &Session{Context: file, Cluster: c.cluster, Node: c.node, Timeout: 5 * time.Second}
		e, one, err := s.Endpoint(t.Context(), c.what)
		got := ""
		if err == nil {
			got = fmt.Sprint(one.Node, " ", e.GetId())
		}
		if got != c.want || ExitCode(err) != c.code || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q (--cluster %q --node %q): %q, %v", c.what, c.cluster, c.node, got, err)
		}
	}
}

// What is found nowhere may be an endpoint of a node that was not asked: no answer
// is no "no". What is found is found.
func TestEndpointOfASilentAgent(t *testing.T) {
	n1, dead, sick := played.Socket(t), played.Socket(t), played.Socket(t)
	played.Agent(t, n1, hasEndpoints{rows: []*hawserv1.Endpoint{{Id: 1, Cluster: "east", Node: "n1", Namespace: "demo", Name: "web"}}})
	played.Agent(t, sick, hawserv1.UnimplementedNodeServer{})
	for _, c := range []struct {
		nodes      []string
		node, what string
		code       int
		says       string
	}{
		{[]string{"n1", n1, "n2", dead}, "", "demo/db", CouldNotAsk, `no endpoint "demo/db" where an agent answers; not asked: agent of node "n2"`},
		{[]string{"n1", n1, "n2", sick}, "", "demo/db", CouldNotAsk, `no endpoint "demo/db" where an agent answers; not asked: node "n2"`},
		{[]string{"n1", n1, "n2", sick}, "", "7", CouldNotAsk, `no endpoint "7"`},
		{[]string{"n1", n1, "n2", dead}, "n1", "demo/db", No, `no endpoint "demo/db"; see`},
		{[]string{"n1", n1, "n2", dead}, "n2", "demo/db", CouldNotAsk, `agent of node "n2"`},
		{[]string{"n1", n1, "n2", dead}, "", "demo/web", Done, ""},
		{[]string{"n1", n1, "n2", sick}, "", "east/demo/web", Done, ""},
	} {
		s := &Session{Context: played.Context(t, "east", "/nowhere", c.nodes...), Node: c.node, Timeout: 5 * time.Second}
		e, _, err := s.Endpoint(t.Context(), c.what)
		if ExitCode(err) != c.code || err == nil && e.GetId() != 1 || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q --node %q %q: %v, %v", c.nodes[3], c.node, c.what, e, err)
		}
		if err == nil && len(s.warned) == 0 && c.node == "" {
			t.Errorf("%q: nobody is told that not all were asked", c.what)
		}
	}
}
