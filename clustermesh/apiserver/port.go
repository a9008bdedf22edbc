// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/rest"
)

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
	return g.admit(id, want, method, changes(method))
}

// admit lets the holder of a certificate in, and notes what administrators
// change.
func (g *gate) admit(id pki.ID, want pki.Role, what string, changing bool) error {
	if id.Cluster != g.cluster || id.Role != want {
		return status.Errorf(codes.PermissionDenied, "certificate of %s: only role %s of cluster %s is admitted here", id, want, g.cluster)
	}
	if want == pki.RoleAdmin && changing {
		g.log.Info("administrator's call", "user", id.Name, "call", what)
	}
	return nil
}

// web lets administrators through to the REST gateway.
func (g *gate) web(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var id pki.ID
		err := status.Error(codes.Unauthenticated, "served over TLS only")
		if r.TLS != nil {
			id, err = holder(r.TLS)
		}
		if err == nil {
			err = g.admit(id, pki.RoleAdmin, r.Method+" "+r.URL.Path, r.Method != http.MethodGet)
		}
		if err != nil {
			g.refused.Add(1)
			http.Error(w, status.Convert(err).Message(), runtime.HTTPStatusFromCode(status.Code(err)))
			return
		}
		next.ServeHTTP(w, r)
	})
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
	info, _ := p.AuthInfo.(credentials.TLSInfo)
	return holder(&info.State)
}

func holder(state *tls.ConnectionState) (pki.ID, error) {
	if len(state.VerifiedChains) == 0 {
		return pki.ID{}, status.Error(codes.Unauthenticated, "no client certificate; an administrator's is made by: hawser-apiserver issue --admin USER --out DIR")
	}
	id, err := pki.CertificateID(state.PeerCertificates[0])
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
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: c.authority().Pool(),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			own, err := c.Certificate()
			if err != nil {
				return nil, err
			}
			out := *own
			out.Certificate = append(append([][]byte(nil), own.Certificate...), c.authority().Certificate().Raw)
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
	s.portListener = lis
	return nil
}

// servePort serves gRPC and, by the gateway, REST on the API port until the
// context ends.
func (s *Server) servePort(ctx context.Context, gateway http.Handler) error {
	g := &gate{cluster: s.cfg.Cluster, admits: admits(), refused: &s.refused, log: s.log}
	api := grpc.NewServer(grpc.UnaryInterceptor(g.unary), grpc.StreamInterceptor(g.stream))
	hawserv1.RegisterMeshServer(api, s)
	hawserv1.RegisterEnrolmentServer(api, s.enrol)
	server := rest.Server(rest.Either(api, g.web(gateway)))
	server.TLSConfig = s.creds.apiTLS()
	server.ErrorLog = slog.NewLogLogger(s.log.Handler(), slog.LevelDebug) // failed handshakes
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	defer api.Stop()
	if err := server.ServeTLS(s.portListener, "", ""); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the API port: %w", err)
	}
	return nil
}
