// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"crypto/tls"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/enrol"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore"
)

func TestWhoMayCallThePort(t *testing.T) {
	s := startPort(t)
	other := startPort(t, func(c *Config) { c.Cluster, c.ClusterID = "west", 2 })
	dir := t.TempDir()
	holder := func(from *Server, role pki.Role, name string) *tls.Certificate {
		out := filepath.Join(dir, from.cfg.Cluster, string(role))
		if err := Issue(from.cfg.DataDir, role, name, out, time.Now()); err != nil {
			t.Fatal(err)
		}
		c, err := pki.FilesIn(out, "tls").Certificate()
		if err != nil {
			t.Fatal(err)
		}
		return &c
	}
	for name, c := range map[string]struct {
		cert               *tls.Certificate
		mesh, renew, enrol codes.Code
	}{
		"admin":        {holder(s, pki.RoleAdmin, "ada"), codes.OK, codes.PermissionDenied, codes.InvalidArgument},
		"agent":        {holder(s, pki.RoleAgent, "n1"), codes.PermissionDenied, codes.InvalidArgument, codes.InvalidArgument},
		"API server":   {holder(s, pki.RoleAPIServer, ""), codes.PermissionDenied, codes.PermissionDenied, codes.InvalidArgument},
		"etcd's root":  {holder(s, pki.RoleRoot, ""), codes.PermissionDenied, codes.PermissionDenied, codes.InvalidArgument},
		"nobody":       {nil, codes.Unauthenticated, codes.Unauthenticated, codes.InvalidArgument},
		"west's admin": {holder(other, pki.RoleAdmin, "ada"), codes.Unavailable, codes.Unavailable, codes.Unavailable}, // no handshake
		"west's agent": {holder(other, pki.RoleAgent, "n1"), codes.Unavailable, codes.Unavailable, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := &tls.Config{RootCAs: s.creds.ca.Pool(), MinVersion: tls.VersionTLS13}
			if c.cert != nil {
				// Shown whether the server asks for its CA or not.
				cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.cert, nil }
			}
			cc, err := grpc.NewClient(s.cfg.ListenAPI.String(), grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
			if err != nil {
				t.Fatal(err)
			}
			defer cc.Close()
			_, err = hawserv1.NewMeshClient(cc).MeshStatus(t.Context(), &hawserv1.MeshStatusRequest{})
			if status.Code(err) != c.mesh {
				t.Errorf("cluster API: %v, want %s", err, c.mesh)
			}
			_, err = hawserv1.NewEnrolmentClient(cc).Renew(t.Context(), &hawserv1.RenewRequest{})
			if status.Code(err) != c.renew {
				t.Errorf("renew: %v, want %s", err, c.renew)
			}
			_, err = hawserv1.NewEnrolmentClient(cc).Enrol(t.Context(), &hawserv1.EnrolRequest{})
			if status.Code(err) != c.enrol {
				t.Errorf("enrol: %v, want %s", err, c.enrol)
			}
			if err := cc.Invoke(t.Context(), "/grpc.health.v1.Health/Check", &hawserv1.StatusRequest{}, &hawserv1.NodeStatusReport{}); err == nil {
				t.Error("an unlisted service answers")
			}
		})
	}
}

func TestForgottenNode(t *testing.T) {
	s := startPort(t)
	n := newNode(t)
	if _, err := n.Join(t.Context(), inviteNode(t, s, "n1")); err != nil {
		t.Fatal(err)
	}
	open := inviteNode(t, s, "n1") // a token that nobody has used
	east := func(sub kvstore.Subtree, kind kvstore.Kind, names ...string) kvstore.Key {
		return kvstore.NewKey(sub, "east", kind, names...)
	}
	store := func(k kvstore.Key, m proto.Message) {
		t.Helper()
		if _, err := s.putIfChanged(t.Context(), k, m); err != nil {
			t.Fatal(err)
		}
	}
	const ip, otherIP = "10.1.1.5/32", "10.1.2.5/32"
	gone := []kvstore.Key{
		east(kvstore.State, kvstore.KindNode, "n1"), east(kvstore.State, kvstore.KindIP, ip), east(kvstore.State, kvstore.KindVTEP, "10.1.1.0/24"),
		east(kvstore.State, kvstore.KindSlice, "demo", "echo", "n1~1"), east(kvstore.Local, kvstore.KindRef, "65537", "n1"),
		east(kvstore.Local, kvstore.KindStatus, "n1"), east(kvstore.Local, kvstore.KindPresence, "n1"),
	}
	stay := []kvstore.Key{east(kvstore.State, kvstore.KindIP, otherIP), east(kvstore.Local, kvstore.KindStatus, "n2"), east(kvstore.Local, kvstore.KindRef, "65537", "n2")}
	for i, m := range []proto.Message{
		&keyspacev1.Node{Cluster: "east", Name: "n1"}, &keyspacev1.IPEntry{Prefix: ip, Identity: 65537, Node: "n1", TunnelAddress: "192.168.1.5"},
		&keyspacev1.VTEP{Prefix: "10.1.1.0/24", TunnelAddress: "192.168.1.5", Node: "n1"}, &keyspacev1.BackendSlice{Namespace: "demo", Service: "echo", Name: "n1~1"},
		&emptypb.Empty{}, &keyspacev1.NodeStatus{Node: "n1"}, &keyspacev1.Presence{Node: "n1"},
	} {
		store(gone[i], m)
	}
	for i, m := range []proto.Message{
		&keyspacev1.IPEntry{Prefix: otherIP, Identity: 65537, Node: "n2", TunnelAddress: "192.168.1.6"}, &keyspacev1.NodeStatus{Node: "n2"}, &emptypb.Empty{},
	} {
		store(stay[i], m)
	}
	_, err := s.ForgetNode(t.Context(), &hawserv1.ForgetNodeRequest{Node: "n1"})
	wantRefusal(t, err, "is present")
	r, err := s.ForgetNode(t.Context(), &hawserv1.ForgetNodeRequest{Node: "n1", Force: true})
	if err != nil || r.GetKeysRemoved() != uint64(len(gone)) || !r.GetWasEnrolled() || !r.GetCutOff() || r.GetCertificateExpiresAt() < time.Now().UnixNano() {
		t.Fatalf("forget: %v, %v", r, err)
	}
	for _, k := range append(gone, stay...) {
		kv, _, err := s.kv.Get(t.Context(), k.String())
		if err != nil || (kv != nil) != slices.ContainsFunc(stay, func(s kvstore.Key) bool { return s.String() == k.String() }) {
			t.Errorf("%s is there: %v, %v", k, kv != nil, err)
		}
	}
	wantRefusal(t, (&enrol.Renewer{Node: *n}).Renew(t.Context()), "was forgotten")
	_, err = newNode(t).Join(t.Context(), open)
	wantRefusal(t, err, "revoked")
	_, err = s.ForgetNode(t.Context(), &hawserv1.ForgetNodeRequest{Node: "n1"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("forget it twice: %v", err)
	}
}
