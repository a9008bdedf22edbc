// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/played"
)

type saysCluster struct {
	hawserv1.UnimplementedMeshServer
	asked atomic.Int32
}

func (s *saysCluster) Describe(context.Context, *hawserv1.DescribeRequest) (*hawserv1.ClusterDescription, error) {
	s.asked.Add(1)
	return &hawserv1.ClusterDescription{Cluster: "east"}, nil
}

type saysNode struct {
	hawserv1.UnimplementedNodeServer
}

func (saysNode) Status(context.Context, *hawserv1.StatusRequest) (*hawserv1.NodeStatusReport, error) {
	return &hawserv1.NodeStatusReport{Cluster: "east", Node: "n1"}, nil
}

// The context of a host names nobody: names are what its programs say.
func TestNamesAreWhatProgramsSay(t *testing.T) {
	api, node := played.Socket(t), played.Socket(t)
	mesh := &saysCluster{}
	stop := played.APIServer(t, api, mesh)
	played.Agent(t, node, saysNode{})
	s := &Session{Context: played.Context(t, "", api, "", node), Timeout: time.Second, learned: &learned{names: map[string]names{}}}
	for range 2 {
		c, err := s.Load()
		if err != nil || c.Clusters[0].Name != "east" || c.Clusters[0].Nodes[0].Name != "n1" {
			t.Fatalf("%+v, %v", c, err)
		}
	}
	if n := mesh.asked.Load(); n != 1 {
		t.Errorf("the API server was asked %d times for its name", n)
	}
	s.Cluster, s.Node = "east", "n1"
	nodes, err := s.Nodes()
	if err != nil || len(nodes) != 1 || nodes[0].Name != "n1" {
		t.Errorf("nodes %v, %v", nodes, err)
	}
	if s.Node = "n2"; true {
		if _, err := s.Nodes(); ExitCode(err) != WrongUse || !strings.Contains(err.Error(), `no node "n2", there are: n1`) {
			t.Errorf("another node: %v", err)
		}
	}
	if s.Cluster = "west"; true {
		if _, err := s.Target(); ExitCode(err) != WrongUse || !strings.Contains(err.Error(), "there are: east") {
			t.Errorf("another cluster: %v", err)
		}
	}
	// The agent knows the cluster's name, too.
	stop()
	s = &Session{Context: s.Context, Timeout: time.Second}
	if name, err := s.ClusterName(); err != nil || name != "east" {
		t.Errorf("name %q, %v", name, err)
	}
}

// Who cannot be asked keeps the place in the context: any name may be its.
func TestNobodySaysNames(t *testing.T) {
	s := &Session{Context: played.Context(t, "", "/nowhere/api", "", "/nowhere/agent"), Timeout: time.Second, Cluster: "east", Node: "n1"}
	if _, err := s.Nodes(); ExitCode(err) != CouldNotAsk || !strings.Contains(err.Error(), "agent of this host: there is no socket /nowhere/agent") {
		t.Errorf("nodes: %v", err)
	}
	if _, err := s.ClusterName(); ExitCode(err) != CouldNotAsk || !strings.Contains(err.Error(), "API server of this host: there is no socket /nowhere/api") {
		t.Errorf("name: %v", err)
	}
	s = &Session{Context: played.Context(t, "east", "/nowhere/api")}
	if _, err := s.Nodes(); !errors.Is(err, ErrNoAgents) {
		t.Errorf("no agents: %v", err)
	}
}
