// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
)

// handshakeTimeout bounds how long a caller may take to say who it is.
const handshakeTimeout = 10 * time.Second

// nobody stands for a method that asks for no certificate: its own proof is all.
const nobody pki.Role = ""

// admits is who may call what on the API port: a method, or all of a service.
// What is not listed is refused.
func admits() map[string]pki.Role {
	return map[string]pki.Role{
		hawserv1.Enrolment_Enrol_FullMethodName:           nobody, // a token's proof
		hawserv1.Enrolment_Renew_FullMethodName:           pki.RoleAgent,
		"/" + hawserv1.Mesh_ServiceDesc.ServiceName + "/": pki.RoleAdmin,
	}
}

// gate lets callers of the API port in by the role of their certificate.
type gate struct {
	cluster string
	admits  map[string]pki.Role
	refused *atomic.Uint64
	log     *slog.Logger
}

// check says why the caller may not call the method, or nil, and counts.
func (g *gate) check(ctx context.Context, method string) error {
	err := g.judge(ctx, method)
	if err != nil {
		g.refused.Add(1)
	}
	return err
}

func (g *gate) judge(ctx context.Context, method string) error {
	service := method[:strings.LastIndexByte(method, '/')+1]
	want, ok := g.admits[method]
	if !ok {
		want, ok = g.admits[service]
	}
	switch {
	case !ok:
		return status.Errorf(codes.PermissionDenied, "%s is not served here", method)
	case want == nobody:
		return nil
	}
	id, err := caller(ctx)
	if err != nil {
		return err
	}
	if id.Cluster != g.cluster || id.Role != want {
		return status.Errorf(codes.PermissionDenied, "certificate of %s: only role %s of cluster %s is admitted here", id, want, g.cluster)
	}
	if want == pki.RoleAdmin && changes(method) {
		g.log.Info("administrator's call", "user", id.Name, "method", method)
	}
	return nil
}

// changes reports whether a method may change anything.
func changes(method string) bool {
	name := method[strings.LastIndexByte(method, '/')+1:]
	return !strings.HasPrefix(name, "List") && !strings.HasSuffix(name, "Status") && name != "Diff"
}

// caller is whose certificate the connection has shown, already verified.
func caller(ctx context.Context) (pki.ID, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return pki.ID{}, status.Error(codes.Unauthenticated, "no connection")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return pki.ID{}, status.Error(codes.Unauthenticated, "no client certificate; an administrator's is made by: hawser-apiserver issue --admin USER --out DIR")
	}
	id, err := pki.CertificateID(info.State.PeerCertificates[0])
	if err != nil {
		return pki.ID{}, status.Error(codes.Unauthenticated, err.Error())
	}
	return id, nil
}

func (g *gate) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := g.check(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (g *gate) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := g.check(ss.Context(), info.FullMethod); err != nil {
		return err
	}
	return next(srv, ss)
}

// apiTLS asks for a client certificate and verifies one that is shown by the
// cluster's CA. The chain holds the CA, so that a joiner can compare it with its
// token.
func (c *certificates) apiTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: c.ca.Pool(),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			own, err := c.Certificate()
			if err != nil {
				return nil, err
			}
			out := *own
			out.Certificate = append(append([][]byte(nil), own.Certificate...), c.ca.Certificate().Raw)
			return &out, nil
		},
	}
}

// openPort listens on the API port; without --listen-api there is none.
func (s *Server) openPort(ctx context.Context) error {
	if !s.cfg.ListenAPI.IsValid() {
		return nil
	}
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.cfg.ListenAPI.String())
	if err != nil {
		return fmt.Errorf("--listen-api: %w", err)
	}
	if s.cfg.ListenAPI.Port() == 0 { // any free one
		s.cfg.ListenAPI = lis.Addr().(*net.TCPAddr).AddrPort()
	}
	g := &gate{cluster: s.cfg.Cluster, admits: admits(), refused: &s.refused, log: s.log}
	s.port = grpc.NewServer(
		grpc.Creds(credentials.NewTLS(s.creds.apiTLS())), grpc.ConnectionTimeout(handshakeTimeout),
		grpc.UnaryInterceptor(g.unary), grpc.StreamInterceptor(g.stream),
	)
	hawserv1.RegisterMeshServer(s.port, s)
	hawserv1.RegisterEnrolmentServer(s.port, s.enrol)
	s.portListener = lis
	return nil
}
