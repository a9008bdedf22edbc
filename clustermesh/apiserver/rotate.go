// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/inspect"
)

// RotateCA does the next step of the replacement of the cluster's CA: it makes
// another one and tells peers and nodes of it (announced), lets it sign
// (switched), and ends the belief in the old one (none). A step that is done
// already changes nothing. After the last two the API server begins anew, as its
// etcd must believe others. No node of the cluster is left behind unless the
// request names it: it could not even learn of the step any more.
func (s *Server) RotateCA(ctx context.Context, r *hawserv1.RotateCARequest) (*hawserv1.CAStatusReport, error) {
	if err := s.nodesConfirmed(ctx, r); err != nil {
		return nil, err
	}
	if to := pki.Phase(r.GetTo()); s.many() && (to == pki.PhaseAnnounced || to == pki.PhaseSwitched || to == pki.PhaseNone) {
		if err := s.rotateMany(ctx, to); err != nil {
			return nil, apiError(err)
		}
		return s.CAStatus(ctx, &hawserv1.CAStatusRequest{})
	}
	before, err := pki.RotationPhase(s.creds.dir)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	switch to := pki.Phase(r.GetTo()); to {
	case pki.PhaseAnnounced:
		err = pki.Announce(s.creds.dir, time.Now())
	case pki.PhaseSwitched:
		err = pki.Switch(s.creds.dir)
	case pki.PhaseNone:
		err = pki.Retire(s.creds.dir)
	default:
		return nil, status.Errorf(codes.InvalidArgument, "%q is no step: announced, switched or none", to)
	}
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	if err := s.creds.reload(); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := s.publishTrust(ctx); err != nil {
		return nil, apiError(err)
	}
	report, err := s.CAStatus(ctx, &hawserv1.CAStatusRequest{})
	if err != nil {
		return nil, err
	}
	if after := report.GetPhase(); after != string(before) {
		s.log.Info("CA replaced by steps", "from", before, "to", after)
		if after != string(pki.PhaseAnnounced) {
			select {
			case s.reopen <- &errReopen{why: "the cluster's CA changed: " + after}:
			default: // it begins anew already
			}
		}
	}
	return report, nil
}

// nodesConfirmed refuses a step that would cut off nodes which the request does
// not name. The first step, and one that is done already, cut off nobody.
func (s *Server) nodesConfirmed(ctx context.Context, r *hawserv1.RotateCARequest) error {
	if to := pki.Phase(r.GetTo()); to != pki.PhaseSwitched && to != pki.PhaseNone {
		return nil
	}
	report, err := s.CAStatus(ctx, &hawserv1.CAStatusRequest{})
	if err != nil {
		return err
	}
	if phase := report.GetPhase(); phase == r.GetTo() || phase == string(pki.PhaseNone) {
		return nil
	}
	var missing []string
	for _, w := range report.GetWaiting() {
		if name, node := strings.CutPrefix(w, "node "); node && !slices.Contains(r.GetLeaveNodes(), name) {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return status.Errorf(codes.FailedPrecondition, "not confirmed by node %s: the step to %q would cut it off; wait for it, start its agent, or remove it (hawser node forget, also where hawser node list does not show it any more); to cut it off all the same: hawser mesh rotate-ca --leave-node %s, and invite it again afterwards",
		strings.Join(missing, ", "), r.GetTo(), strings.Join(missing, ","))
}

// publishTrust tells the own nodes whom to believe.
func (s *Server) publishTrust(ctx context.Context) error {
	rec := &keyspacev1.TrustBundle{}
	if s.many() {
		at, err := s.rotation(ctx)
		if err != nil {
			return fmt.Errorf("publish the CAs: %w", err)
		}
		rec.Certificates = s.toldTrust(at.Msg)
	}
	if len(rec.GetCertificates()) == 0 {
		for _, c := range s.creds.CA() {
			rec.Certificates = append(rec.Certificates, c.Raw)
		}
	}
	if _, err := s.putIfChanged(ctx, kvstore.NewKey(kvstore.Local, s.cfg.Cluster, kvstore.KindTrust), rec); err != nil {
		return fmt.Errorf("publish the CAs: %w", err)
	}
	return nil
}

// CAStatus shows how far the replacement of the CA has come.
func (s *Server) CAStatus(ctx context.Context, _ *hawserv1.CAStatusRequest) (*hawserv1.CAStatusReport, error) {
	phase, err := pki.RotationPhase(s.creds.dir)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	r := &hawserv1.CAStatusReport{Phase: string(phase)}
	var raw [][]byte
	cas := s.creds.CA()
	if s.many() {
		told, err := s.manyStatus(ctx, r)
		if err != nil {
			return nil, apiError(err)
		}
		if len(told) > 0 {
			if cas, err = x509.ParseCertificates(slices.Concat(told...)); err != nil {
				return nil, status.Error(codes.Internal, err.Error())
			}
		}
	}
	for i, c := range cas {
		sum := pki.Hash(c)
		r.Certificates = append(r.Certificates, &hawserv1.CertificateInfo{
			Sha256: hex.EncodeToString(sum[:]), NotAfter: c.NotAfter.UnixNano(), Signs: i == 0, Pem: string(pki.EncodeCertificate(c)),
		})
		raw = append(raw, c.Raw)
	}
	note := func(who string, confirmed bool) {
		if confirmed {
			r.Confirmed = append(r.Confirmed, who)
		} else {
			r.Waiting = append(r.Waiting, who)
		}
	}
	for name, ok := range s.mesh.Trusting() {
		note("peer "+name, ok)
	}
	if err := s.nodesTrusting(ctx, raw, note); err != nil {
		return nil, apiError(err)
	}
	slices.Sort(r.Confirmed)
	slices.Sort(r.Waiting)
	return r, nil
}

// nodesTrusting asks of each node whether it believes the bundle and has a
// certificate of the CA that signs.
func (s *Server) nodesTrusting(ctx context.Context, bundle [][]byte, note func(string, bool)) error {
	nodes, err := s.certified(ctx)
	if err != nil {
		return err
	}
	statuses, err := list[*keyspacev1.NodeStatus](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindStatus)
	if err != nil {
		return err
	}
	said := map[string]*keyspacev1.NodeStatus{}
	for _, st := range statuses {
		said[st.msg.GetNode()] = st.msg
	}
	trust, signer := peering.BundleHash(bundle), sha256.Sum256(bundle[0])
	for _, name := range nodes {
		st := said[name]
		note("node "+name, bytes.Equal(st.GetTrust(), trust[:]) && bytes.Equal(st.GetSigner(), signer[:]))
	}
	return nil
}

// certified are all nodes that may have a certificate of this cluster: those with a
// record, also one that cannot be read, and those whose record was removed because
// they were away for long. Their enrolment stays, and what was decided for them.
func (s *Server) certified(ctx context.Context) ([]string, error) {
	names := map[string]bool{}
	for kind, sub := range map[kvstore.Kind]kvstore.Subtree{
		kvstore.KindNode: kvstore.State, kvstore.KindEnrolment: kvstore.Private, kvstore.KindNodeConfig: kvstore.Local,
	} {
		_, err := inspect.Walk(ctx, s.kv, kvstore.KindPrefix(sub, s.cfg.Cluster, kind), func(kv kvstore.KV) error {
			if key, err := kvstore.ParseKey(kv.Key); err == nil && len(key.Names) == 1 {
				names[key.Names[0]] = true
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}
