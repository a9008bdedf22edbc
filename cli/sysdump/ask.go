// SPDX-License-Identifier: Apache-2.0

package sysdump

import (
	"context"
	"errors"

	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/clicontext"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

// question is one listing of a program.
type question[C any] struct {
	name string
	ask  func(context.Context, C) (proto.Message, error)
}

func clusterQuestions() []question[hawserv1.MeshClient] {
	type c = hawserv1.MeshClient
	return []question[c]{
		{"status", func(ctx context.Context, m c) (proto.Message, error) {
			return m.ClusterStatus(ctx, &hawserv1.ClusterStatusRequest{})
		}},
		{"mesh", func(ctx context.Context, m c) (proto.Message, error) {
			return m.MeshStatus(ctx, &hawserv1.MeshStatusRequest{})
		}},
		{"nodes", func(ctx context.Context, m c) (proto.Message, error) {
			return m.ListNodes(ctx, &hawserv1.ListNodesRequest{})
		}},
		{"identities", func(ctx context.Context, m c) (proto.Message, error) {
			return m.ListIdentities(ctx, &hawserv1.ListIdentitiesRequest{})
		}},
		{"vteps", func(ctx context.Context, m c) (proto.Message, error) {
			return m.ListVTEPs(ctx, &hawserv1.ListVTEPsRequest{})
		}},
		{"policies", func(ctx context.Context, m c) (proto.Message, error) {
			return m.ListPolicies(ctx, &hawserv1.ListPoliciesRequest{})
		}},
		{"grants", func(ctx context.Context, m c) (proto.Message, error) {
			return m.ListGrants(ctx, &hawserv1.ListGrantsRequest{})
		}},
		{"ca", func(ctx context.Context, m c) (proto.Message, error) {
			return m.CAStatus(ctx, &hawserv1.CAStatusRequest{})
		}},
		{"metrics", func(ctx context.Context, m c) (proto.Message, error) {
			return m.ReadMetrics(ctx, &hawserv1.ReadClusterMetricsRequest{})
		}},
		{"services", func(ctx context.Context, m c) (proto.Message, error) {
			return m.ListServices(ctx, &hawserv1.ListServicesRequest{})
		}},
	}
}

func nodeQuestions() []question[hawserv1.NodeClient] {
	type c = hawserv1.NodeClient
	return []question[c]{
		{"status", func(ctx context.Context, n c) (proto.Message, error) {
			return n.Status(ctx, &hawserv1.StatusRequest{})
		}},
		{"endpoints", func(ctx context.Context, n c) (proto.Message, error) {
			return n.ListEndpoints(ctx, &hawserv1.ListEndpointsRequest{})
		}},
		{"ipcache", func(ctx context.Context, n c) (proto.Message, error) {
			return n.ListIPCache(ctx, &hawserv1.ListIPCacheRequest{})
		}},
		{"maps", func(ctx context.Context, n c) (proto.Message, error) {
			return n.ListMaps(ctx, &hawserv1.ListMapsRequest{})
		}},
		{"drops", func(ctx context.Context, n c) (proto.Message, error) {
			return n.ListDrops(ctx, &hawserv1.ListDropsRequest{})
		}},
		{"frontends", func(ctx context.Context, n c) (proto.Message, error) {
			return n.ListFrontends(ctx, &hawserv1.ListFrontendsRequest{})
		}},
		{"paths", func(ctx context.Context, n c) (proto.Message, error) {
			return n.ListPaths(ctx, &hawserv1.ListPathsRequest{})
		}},
		{"kernel", func(ctx context.Context, n c) (proto.Message, error) {
			return n.ReadKernel(ctx, &hawserv1.ReadKernelRequest{})
		}},
		{"metrics", func(ctx context.Context, n c) (proto.Message, error) {
			return n.ReadMetrics(ctx, &hawserv1.ReadMetricsRequest{})
		}},
		{"rules", func(ctx context.Context, n c) (proto.Message, error) {
			return n.ListRules(ctx, &hawserv1.ListRulesRequest{})
		}},
	}
}

// askAll asks the programs of a cluster. What one does not answer is missed;
// only failing to store is an error.
func askAll(ctx context.Context, s *session.Session, cl clicontext.Cluster, store func(string, any) error, miss func(string, error)) error {
	one := *s
	one.Cluster = cl.Name
	dir := "cluster-" + cl.Name + "/"
	client, conn, err := one.Mesh()
	if err != nil {
		miss(dir, err)
	} else {
		err := answers(ctx, &one, clusterQuestions(), client, dir, store, miss)
		_ = conn.Close()
		if err != nil {
			return err
		}
	}
	for _, n := range cl.Nodes {
		one.Node = n.Name
		dir := "node-" + n.Name + "/"
		conns, err := one.Nodes()
		if err != nil {
			miss(dir, err)
			continue
		}
		err = answers(ctx, &one, nodeQuestions(), conns[0].NodeClient, dir, store, miss)
		for _, c := range conns {
			_ = c.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func answers[C any](ctx context.Context, s *session.Session, qs []question[C], client C, dir string, store func(string, any) error, miss func(string, error)) error {
	for _, q := range qs {
		call, cancel := s.Deadline(ctx)
		m, err := q.ask(call, client)
		cancel()
		if err != nil {
			miss(dir+q.name, errors.New(session.Message(err)))
			continue
		}
		if t, ok := m.(interface{ GetText() string }); ok {
			err = store(dir+q.name+".txt", []byte(t.GetText()))
		} else {
			err = store(dir+q.name+".json", printer.Value(m))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
