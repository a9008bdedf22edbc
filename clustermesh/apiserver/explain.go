// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/federation"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/policy/api"
	"github.com/hawser-mesh/hawser/policy/trace"
)

// peerAnswers is how long a peer has for its answer.
const peerAnswers = 3 * time.Second

// ExplainPolicy implements hawserv1.MeshServer.
func (s *Server) ExplainPolicy(ctx context.Context, r *hawserv1.ExplainPolicyRequest) (*hawserv1.ExplainPolicyResponse, error) {
	self, err1 := endOf(r.GetSelf().GetLabels(), r.GetSelf().GetAddress(), r.GetSelf().GetReserved())
	peer, err2 := endOf(r.GetPeer().GetLabels(), r.GetPeer().GetAddress(), r.GetPeer().GetReserved())
	err := errors.Join(err1, err2)
	if d := r.GetDirection(); d != "ingress" && d != "egress" {
		err = errors.Join(err, fmt.Errorf("direction %q: want ingress or egress", d))
	}
	if r.GetProtocol() > 255 || r.GetPort() > 65535 {
		err = errors.Join(err, fmt.Errorf("protocol %d, port %d: no such packet", r.GetProtocol(), r.GetPort()))
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if c := r.GetCluster(); c != "" && c != s.cfg.Cluster {
		return s.askPeer(ctx, c, r), nil
	}
	v, err := s.judge(ctx, r.GetDirection() == "egress", self, peer, uint8(r.GetProtocol()), uint16(r.GetPort()))
	if err != nil {
		return nil, apiError(err)
	}
	return &hawserv1.ExplainPolicyResponse{Answered: v.Asked, Allowed: v.Allowed, Reason: v.Reason, Hints: v.Hints, Audited: v.Audited}, nil
}

// askPeer puts a question to a peer over the stream. Whatever keeps it from
// answering is told as such.
func (s *Server) askPeer(ctx context.Context, cluster string, r *hawserv1.ExplainPolicyRequest) *hawserv1.ExplainPolicyResponse {
	ctx, cancel := context.WithTimeout(ctx, peerAnswers)
	defer cancel()
	end := func(e *hawserv1.ExplainPolicyEnd) *federationv1.ExplainEnd {
		return &federationv1.ExplainEnd{Labels: e.GetLabels(), Address: e.GetAddress()}
	}
	a, err := s.mesh.Explain(ctx, cluster, &federationv1.Explain{
		Egress: r.GetDirection() == "egress", Self: end(r.GetSelf()), Peer: end(r.GetPeer()), Protocol: r.GetProtocol(), Port: r.GetPort(),
	})
	out := &hawserv1.ExplainPolicyResponse{}
	switch {
	case errors.Is(err, federation.ErrNotConnected) && s.cfg.Etcd.Shared:
		out.Reason = fmt.Sprintf("not asked: the clusters of a shared etcd have no stream to ask over; ask there: hawser policy trace --cluster %s", cluster)
	case errors.Is(err, federation.ErrNotConnected):
		out.Reason = fmt.Sprintf("not asked: cluster %s is not connected; see: hawser mesh status", cluster)
	case err != nil:
		out.Reason = fmt.Sprintf("not answered: %v", err)
	case a.GetOutcome() == federationv1.Explanation_OUTCOME_NOT_GRANTED:
		out.Reason = fmt.Sprintf("not granted: cluster %s does not tell us what its policies say", cluster)
	case a.GetOutcome() != federationv1.Explanation_OUTCOME_ANSWERED:
		out.Reason = fmt.Sprintf("cluster %s refused to say: %s", cluster, a.GetReason())
	default:
		out.Answered, out.Allowed, out.Reason, out.Audited = true, a.GetAllowed(), a.GetReason(), a.GetAudited()
	}
	return out
}

// explainTo answers a peer. It may ask about its own workloads and ours, both as
// they are published; the answer names rules and says nothing of what is in them.
func (s *Server) explainTo(ctx context.Context, from string, q *federationv1.Explain) *federationv1.Explanation {
	refused := func(format string, args ...any) *federationv1.Explanation {
		return &federationv1.Explanation{Outcome: federationv1.Explanation_OUTCOME_REFUSED, Reason: fmt.Sprintf(format, args...)}
	}
	self, err1 := endOf(q.GetSelf().GetLabels(), q.GetSelf().GetAddress(), 0)
	peer, err2 := endOf(q.GetPeer().GetLabels(), q.GetPeer().GetAddress(), 0)
	if err := errors.Join(err1, err2); err != nil {
		return refused("%v", err)
	}
	if q.GetProtocol() > 255 || q.GetPort() > 65535 {
		return refused("protocol %d, port %d: no such packet", q.GetProtocol(), q.GetPort())
	}
	for cluster, end := range map[string]trace.End{s.cfg.Cluster: self, from: peer} {
		known, err := s.published(ctx, cluster, end.Labels)
		if err != nil {
			return refused("%s could not look: its keyspace does not answer", s.cfg.Cluster)
		}
		if !known {
			return refused("%s knows no workload of %s with these labels", s.cfg.Cluster, cluster)
		}
	}
	v, err := s.judge(ctx, q.GetEgress(), self, peer, uint8(q.GetProtocol()), uint16(q.GetPort()))
	if err != nil {
		s.log.Warn("explain to a peer", "peer", from, "error", err)
		return refused("%s could not look: its keyspace does not answer", s.cfg.Cluster)
	}
	return &federationv1.Explanation{Outcome: federationv1.Explanation_OUTCOME_ANSWERED, Allowed: v.Allowed, Reason: v.Reason, Audited: v.Audited}
}

// published reports whether a cluster has an identity with exactly these labels.
func (s *Server) published(ctx context.Context, cluster string, ls labels.Set) (bool, error) {
	if c, _ := ls.Get(labels.Mesh, labels.ClusterKey); c != cluster {
		return false, nil
	}
	rows, err := list[*keyspacev1.Identity](ctx, s, kvstore.State, cluster, kvstore.KindIdentity)
	return slices.ContainsFunc(rows, func(r stored[*keyspacev1.Identity]) bool {
		set, err := labels.ParseSet(r.msg.GetLabels(), labels.Any)
		return err == nil && set.Equal(ls)
	}), err
}

// endOf is one end of a packet as it came in a request.
func endOf(texts []string, address string, reserved uint32) (end trace.End, err error) {
	if end.Labels, err = labels.ParseSet(texts, labels.Any); err != nil {
		return end, err
	}
	if address != "" {
		if end.Addr, err = netip.ParseAddr(address); err != nil {
			return end, err
		}
		end.Name = address
	}
	name, ok := identity.Number(reserved).Reserved()
	if reserved != 0 && !ok {
		return end, fmt.Errorf("%d is no reserved identity", reserved)
	}
	if reserved != 0 && address == "" {
		end.Name = name
	}
	end.Reserved = identity.Number(reserved)
	if len(end.Labels) > 0 {
		end.Name = end.Labels.String()
	}
	return end, nil
}

// judge asks the own cluster's policies.
func (s *Server) judge(ctx context.Context, egress bool, self, peer trace.End, protocol uint8, port uint16) (trace.Verdict, error) {
	q := trace.Question{Cluster: s.cfg.Cluster, KubeAPIServers: s.cfg.KubeAPIServers, Protocol: protocol, Port: port}
	policies, bad, err := listBad[*keyspacev1.PolicyObject](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindPolicy)
	if err != nil {
		return trace.Verdict{}, err
	}
	left := len(bad) // out of the answer
	for _, p := range policies {
		objects, err := api.Parse([]byte(p.msg.GetSource()))
		if err != nil {
			left++
		}
		q.Objects = append(q.Objects, objects...)
	}
	if q.Services, err = s.servedServices(ctx, q.Objects); err != nil {
		return trace.Verdict{}, err
	}
	node, err := s.completeEnd(ctx, &self)
	if err != nil {
		return trace.Verdict{}, err
	}
	if _, err := s.completeEnd(ctx, &peer); err != nil {
		return trace.Verdict{}, err
	}
	note, err := s.enforcement(ctx, node, &q)
	if err != nil {
		return trace.Verdict{}, err
	}
	var v trace.Verdict
	if egress {
		q.Src, q.Dst = self, peer
		v, err = q.Egress()
	} else {
		q.Src, q.Dst = peer, self
		v, err = q.Ingress()
	}
	if note != "" && v.Asked {
		v.Hints = append(v.Hints, note)
	}
	if left > 0 && v.Asked {
		v.Hints = append(v.Hints, fmt.Sprintf("%d policies cannot be read and are left out, and nodes go on enforcing what they said before; see: hawser policy list", left))
	}
	return v, err
}
