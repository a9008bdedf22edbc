// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

// parameters are what a node must know of this cluster.
func (s *Server) parameters() *hawserv1.ClusterParameters {
	p := &hawserv1.ClusterParameters{
		Name: s.cfg.Cluster, EtcdEndpoints: []string{"https://" + s.etcd.Endpoint()},
		ClusterBits: s.cfg.ClusterBits, TunnelPort: uint32(s.cfg.TunnelPort),
	}
	if api := s.cfg.advertisedAPI(); api != "" {
		p.ApiEndpoints = []string{api}
	}
	return p
}

// InviteNode makes a token with which one host joins as a node, once.
func (s *Server) InviteNode(ctx context.Context, r *hawserv1.InviteNodeRequest) (*hawserv1.InviteNodeResponse, error) {
	token, err := s.enrol.Invite(ctx, r.GetNode(), time.Duration(r.GetTtlSeconds())*time.Second)
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &hawserv1.InviteNodeResponse{Token: token.String(), ExpiresAt: token.Expires.UnixNano()}, nil
}
