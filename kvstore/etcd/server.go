// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	quotaBytes       = 8 << 30
	progressInterval = 5 * time.Second
	historyTime      = "30m"
	historyRevisions = 5_000_000
	startTimeout     = 30 * time.Second
	historyCheck     = time.Minute
)

// ServerConfig is how an embedded etcd of one member runs.
type ServerConfig struct {
	// Cluster is the Hawser cluster whose users and roles are set up.
	Cluster string
	// Name is the member's name; empty means "member". It may not change
	// once DataDir exists.
	Name string
	// DataDir holds the store; it is made when absent.
	DataDir string
	// Listen is the address of clients, mutual TLS only. Port 0 picks a free
	// one: see Server.Endpoint.
	Listen netip.AddrPort
	// TLS is the server's certificate (issued for Listen's address) and the
	// CA that signs all clients.
	TLS pki.Files
	// Root is a certificate with the common name root (pki.RoleRoot).
	Root pki.Files
	// UnsafeNoFsync trades durability for speed: for labs and tests.
	UnsafeNoFsync bool
	// StartTimeout bounds Start; 0 means 30 s.
	StartTimeout time.Duration
	Log          *slog.Logger
}

// Validate says what is wrong, all problems joined.
func (c ServerConfig) Validate() error {
	var errs []error
	if err := kvstore.ValidateClusterName(c.Cluster); err != nil {
		errs = append(errs, err)
	}
	if c.DataDir == "" {
		errs = append(errs, errors.New("no data directory"))
	}
	if !c.Listen.IsValid() {
		errs = append(errs, errors.New("no listen address"))
	}
	for name, f := range map[string]pki.Files{"server": c.TLS, "root": c.Root} {
		if f.CA == "" || f.Cert == "" || f.Key == "" {
			errs = append(errs, fmt.Errorf("%s certificate: CA, certificate and key files are all needed", name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("embedded etcd configuration: %w", err)
	}
	return nil
}

// Server is an etcd member inside this process.
type Server struct {
	cfg  ServerConfig
	etcd *embed.Etcd
	root *Client

	closeOnce sync.Once
	stop      chan struct{}
	done      sync.WaitGroup
}

// Start runs an etcd on new or existing data and returns when it serves, with
// access control on. It blocks up to StartTimeout or the context's end. The
// caller closes the Server.
func Start(ctx context.Context, cfg ServerConfig) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.StartTimeout == 0 {
		cfg.StartTimeout = startTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.StartTimeout)
	defer cancel()
	if err := checkListen(ctx, cfg.Listen); err != nil {
		return nil, err
	}
	e, err := embed.StartEtcd(embedConfig(cfg))
	if err != nil {
		return nil, fmt.Errorf("start etcd in %s on %s: %w", cfg.DataDir, cfg.Listen, err)
	}
	s := &Server{cfg: cfg, etcd: e, stop: make(chan struct{})}
	if err := s.waitReady(ctx); err != nil {
		s.Close()
		return nil, err
	}
	s.done.Go(s.boundHistory)
	return s, nil
}

// checkListen tells a taken port apart before etcd starts, where the error
// would not name the cure.
func checkListen(ctx context.Context, addr netip.AddrPort) error {
	if addr.Port() == 0 {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr.String())
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("start etcd: %s is in use by another process; stop it or choose another address: %w", addr, err)
	}
	if err != nil {
		return fmt.Errorf("start etcd: listen on %s: %w", addr, err)
	}
	return l.Close()
}

func embedConfig(cfg ServerConfig) *embed.Config {
	c := embed.NewConfig()
	c.Name = cfg.Name
	if c.Name == "" {
		c.Name = "member"
	}
	c.Dir = cfg.DataDir
	client := url.URL{Scheme: "https", Host: cfg.Listen.String()}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	// A single member talks to no other: it has an address only on paper.
	c.ListenPeerUrls = nil
	c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.InitialClusterToken = "hawser-" + cfg.Cluster
	// Nor has it anyone to lose an election to.
	c.TickMs, c.ElectionMs = 20, 200
	c.ClientTLSInfo = transport.TLSInfo{
		CertFile: cfg.TLS.Cert, KeyFile: cfg.TLS.Key, TrustedCAFile: cfg.TLS.CA,
		ClientCertAuth: true,
	}
	c.TlsMinVersion = "TLS1.3"
	c.EnableGRPCGateway = false
	c.QuotaBackendBytes = quotaBytes
	c.WatchProgressNotifyInterval = progressInterval
	c.AutoCompactionMode = embed.CompactorModePeriodic
	c.AutoCompactionRetention = historyTime
	c.UnsafeNoFsync = cfg.UnsafeNoFsync
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapLogger(cfg.Log))
	return c
}

func (s *Server) waitReady(ctx context.Context) error {
	select {
	case <-s.etcd.Server.ReadyNotify():
	case err := <-s.etcd.Err():
		return fmt.Errorf("start etcd in %s: %w", s.cfg.DataDir, err)
	case <-ctx.Done():
		return fmt.Errorf("start etcd in %s: not ready in time: %w", s.cfg.DataDir, ctx.Err())
	}
	tls, err := s.cfg.Root.ClientTLS(nil)
	if err != nil {
		return fmt.Errorf("start etcd: root's certificate: %w", err)
	}
	s.root, err = NewClient(ClientConfig{Endpoints: []string{s.Endpoint()}, TLS: tls, Log: s.cfg.Log})
	if err != nil {
		return err
	}
	if err := bootstrapAccess(ctx, s.root.etcd, s.cfg.Cluster); err != nil {
		return fmt.Errorf("set up access to etcd on %s: %w", s.Endpoint(), err)
	}
	return nil
}

// Endpoint is host:port by which this host reaches the server; a wildcard
// listen address becomes loopback.
func (s *Server) Endpoint() string {
	addr, err := netip.ParseAddrPort(s.etcd.Clients[0].Addr().String())
	if err != nil {
		return s.cfg.Listen.String()
	}
	ip := s.cfg.Listen.Addr()
	switch {
	case ip == netip.IPv4Unspecified():
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case ip == netip.IPv6Unspecified():
		ip = netip.IPv6Loopback()
	}
	return netip.AddrPortFrom(ip, addr.Port()).String()
}

// Root is a client with all rights, for upkeep. Server.Close closes it.
func (s *Server) Root() *Client { return s.root }

// Err delivers an error if the server dies by itself.
func (s *Server) Err() <-chan error { return s.etcd.Err() }

// Close stops the server and waits until its data is closed.
func (s *Server) Close() {
	s.closeOnce.Do(func() {
		close(s.stop)
		s.done.Wait()
		if s.root != nil {
			_ = s.root.Close()
		}
		s.etcd.Close()
	})
}

// Compact forgets the history before rev: watches and listings older than that
// get kvstore.ErrCompacted. Compacting twice is no error.
func (s *Server) Compact(ctx context.Context, rev int64) error {
	ctx, cancel := context.WithTimeout(ctx, s.root.timeout)
	defer cancel()
	_, err := s.root.etcd.Compact(ctx, rev)
	if err != nil && !errors.Is(s.root.mapError(err), kvstore.ErrCompacted) {
		return s.root.wrap("compact to", fmt.Sprint(rev), err)
	}
	return nil
}

// boundHistory keeps at most historyRevisions; etcd itself compacts by time.
func (s *Server) boundHistory() {
	t := time.NewTicker(historyCheck)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
		}
		rev := s.etcd.Server.KV().Rev() - historyRevisions
		if rev <= s.etcd.Server.KV().FirstRev() {
			continue
		}
		if err := s.Compact(context.Background(), rev); err != nil && s.cfg.Log != nil {
			s.cfg.Log.Warn("etcd history not compacted", "error", err)
		}
	}
}
