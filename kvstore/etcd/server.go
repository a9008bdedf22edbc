// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"

	"github.com/hawser-mesh/hawser/kvstore"
)

// Server is an etcd member inside this process.
type Server struct {
	cfg  ServerConfig
	etcd *embed.Etcd
	root *Client // of this member
	all  *Client // of all members

	open      *openStreams
	closeOnce sync.Once
	cancel    context.CancelFunc
	done      sync.WaitGroup

	mu       sync.Mutex
	snapshot SnapshotInfo // the newest
	disk     DiskInfo
}

// Start runs an etcd on new or existing data and returns when it serves, with
// access control on. It blocks up to StartTimeout or the context's end; one of
// several members waits for a majority of them. The caller closes the Server.
func Start(ctx context.Context, cfg ServerConfig) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return start(ctx, cfg.withDefaults())
}

// start is Start for a configuration that is complete.
func start(ctx context.Context, cfg ServerConfig) (*Server, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.StartTimeout)
	defer cancel()
	if err := checkListen(ctx, cfg.Listen); err != nil {
		return nil, err
	}
	if err := checkDisk(cfg); err != nil {
		return nil, err
	}
	open := &openStreams{}
	ec, err := embedConfig(cfg, grpc.ChainStreamInterceptor(open.intercept))
	if err != nil {
		return nil, err
	}
	join, err := planStart(ctx, cfg, ec)
	if err != nil {
		return nil, err
	}
	e, err := startEmbedded(ec)
	if err != nil {
		return nil, explainDisk(cfg, fmt.Errorf("start etcd in %s on %s: %w", cfg.DataDir, cfg.Listen, err))
	}
	upkeep, stop := context.WithCancel(context.Background())
	s := &Server{cfg: cfg, etcd: e, open: open, cancel: stop}
	if err := s.waitReady(ctx, join); err != nil {
		s.Close()
		return nil, err
	}
	s.done.Go(func() { s.keepUp(upkeep) })
	s.done.Go(func() { s.cutExpelled(upkeep) })
	s.done.Go(func() { s.watchDisk(upkeep) })
	return s, nil
}

// startEmbedded is embed.StartEtcd, which ends the process over what it cannot
// read, as an error. Files stay open then: only another process can try again.
func startEmbedded(ec *embed.Config) (e *embed.Etcd, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v (its log says why)", r)
		}
	}()
	return embed.StartEtcd(ec)
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

// waitReady blocks until the member serves and access control is on. A joining
// member becomes a voting one first.
func (s *Server) waitReady(ctx context.Context, join bool) error {
	if err := s.connectRoot(); err != nil {
		return err
	}
	if join || s.etcd.Server.IsLearner() {
		if err := s.promote(ctx); err != nil {
			return err
		}
	}
	select {
	case <-s.etcd.Server.ReadyNotify():
	case err := <-s.etcd.Err():
		return fmt.Errorf("start etcd in %s: %w", s.cfg.DataDir, err)
	case <-ctx.Done():
		if len(s.cfg.Members) > 0 {
			return fmt.Errorf("start etcd in %s: the other members did not come up in time; a majority of %d is needed: %w",
				s.cfg.DataDir, len(s.cfg.Members), ctx.Err())
		}
		return fmt.Errorf("start etcd in %s: not ready in time: %w", s.cfg.DataDir, ctx.Err())
	}
	return s.ensureAccess(ctx)
}

// connectRoot makes the clients with all rights.
func (s *Server) connectRoot() (err error) {
	tls, err := s.cfg.Root.ClientTLS(nil)
	if err != nil {
		return fmt.Errorf("start etcd: root's certificate: %w", err)
	}
	s.root, err = NewClient(ClientConfig{Endpoints: []string{s.Endpoint()}, TLS: tls, Log: s.cfg.Log})
	if err != nil {
		return err
	}
	s.all, err = NewClient(ClientConfig{Endpoints: s.Endpoints(), TLS: tls, Log: s.cfg.Log})
	return err
}

// ensureAccess makes users and roles what the table says. Of several members
// the leader does it and the others wait for it.
func (s *Server) ensureAccess(ctx context.Context) error {
	for {
		if s.leads() {
			err := bootstrapAccess(ctx, s.root.etcd, s.cfg.access())
			if err == nil && len(s.cfg.Shared) == 0 {
				err = ensureNodesRole(ctx, s.root.etcd, s.cfg.Cluster)
			}
			if err != nil {
				return fmt.Errorf("set up access to etcd on %s: %w", s.Endpoint(), err)
			}
			return nil
		}
		if st, err := s.root.etcd.AuthStatus(ctx); err == nil && st.Enabled {
			return nil
		}
		if err := sleep(ctx, memberPoll); err != nil {
			return fmt.Errorf("wait for the leader to set up access to etcd: %w", err)
		}
	}
}

// access is who may do what.
func (c ServerConfig) access() map[string][]access {
	if len(c.Shared) == 0 {
		return accessTable(c.Cluster, false)
	}
	all := map[string][]access{}
	for _, name := range c.Shared {
		maps.Copy(all, accessTable(name, true))
	}
	return all
}

// leads reports whether this member is the leader.
func (s *Server) leads() bool { return s.etcd.Server.Leader() == s.etcd.Server.MemberID() }

// Leads reports whether this member is the leader now: the one of several that
// does the cluster's upkeep.
func (s *Server) Leads() bool { return s.leads() }

// Endpoint is host:port by which this host reaches the server; a wildcard
// listen address becomes loopback.
func (s *Server) Endpoint() string {
	port := s.cfg.Listen.Port()
	for _, l := range s.etcd.Clients { // the other one is a unix socket
		if a, ok := l.Addr().(*net.TCPAddr); ok {
			port = a.AddrPort().Port()
		}
	}
	ip := s.cfg.Listen.Addr()
	switch {
	case ip == netip.IPv4Unspecified():
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case ip == netip.IPv6Unspecified():
		ip = netip.IPv6Loopback()
	}
	return netip.AddrPortFrom(ip, port).String()
}

// Endpoints are all members, this one first.
func (s *Server) Endpoints() []string {
	out := []string{s.Endpoint()}
	for _, m := range s.cfg.Members {
		if m.Name != s.cfg.Name {
			out = append(out, m.Client.String())
		}
	}
	return out
}

// Root is a client of this member with all rights, for upkeep. Server.Close
// closes it.
func (s *Server) Root() *Client { return s.root }

// Err delivers an error if the server dies by itself.
func (s *Server) Err() <-chan error { return s.etcd.Err() }

// Close stops the server and waits until its data is closed.
func (s *Server) Close() {
	s.closeOnce.Do(func() {
		s.cancel()
		s.done.Wait()
		for _, c := range []*Client{s.root, s.all} {
			if c != nil {
				_ = c.Close()
			}
		}
		s.open.close()
		s.etcd.Close()
	})
}

// Compact forgets the history before rev: watches and listings older than that
// get kvstore.ErrCompacted. Compacting twice is no error.
func (s *Server) Compact(ctx context.Context, rev int64) error {
	return s.root.compact(ctx, rev, false)
}

// Stats asks the store for its size, age and health.
func (s *Server) Stats(ctx context.Context) (Stats, error) {
	st, err := s.all.Stats(ctx, kvstore.Root)
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Snapshot, st.Disk = s.snapshot, s.disk
	return st, err
}
