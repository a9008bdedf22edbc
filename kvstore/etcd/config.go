// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"

	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/tlsgrpc"
	"github.com/hawser-mesh/hawser/kvstore"
)

// Defaults of a ServerConfig.
const (
	DefaultQuota         = 8 << 30
	DefaultHistory       = 30 * time.Minute
	DefaultSnapshotEvery = 6 * time.Hour
	DefaultSnapshotKeep  = 8

	progressInterval = 5 * time.Second
	progressFirst    = 100 * time.Millisecond
	historyRevisions = 5_000_000
	startTimeout     = 30 * time.Second
	quorumTimeout    = 5 * time.Minute
	upkeepEvery      = time.Minute
	minDefragment    = 64 << 20
	electionBeats    = 10
	singleName       = "member"
	singlePeer       = "http://127.0.0.1:2380"
)

// Member is one of several members of an embedded etcd.
type Member struct {
	Name   string
	Client netip.AddrPort // where agents and API servers reach it
	Peer   netip.AddrPort // where the other members reach it
}

// ParseMember reads NAME=CLIENT_ADDRESS:PORT/PEER_ADDRESS:PORT.
func ParseMember(s string) (Member, error) {
	name, rest, ok := strings.Cut(s, "=")
	client, peer, ok2 := strings.Cut(rest, "/")
	m := Member{Name: name}
	var err1, err2 error
	m.Client, err1 = netip.ParseAddrPort(client)
	m.Peer, err2 = netip.ParseAddrPort(peer)
	if !ok || !ok2 || name == "" || err1 != nil || err2 != nil {
		return m, fmt.Errorf("member %q: must be NAME=CLIENT_ADDRESS:PORT/PEER_ADDRESS:PORT", s)
	}
	return m, nil
}

func (m Member) String() string { return m.Name + "=" + m.Client.String() + "/" + m.Peer.String() }

func (m Member) peerURL() url.URL { return url.URL{Scheme: "https", Host: m.Peer.String()} }

// ServerConfig is how an embedded etcd runs, or one member of it.
type ServerConfig struct {
	// Cluster is the Hawser cluster whose users and roles are set up.
	Cluster string
	// Shared are the clusters that keep their keys in this etcd, each with its
	// own users and rights; Cluster then only names the etcd itself.
	Shared []string
	// Name is the member's name; empty means "member". It may not change
	// once DataDir exists.
	Name string
	// DataDir holds the store; it is made when absent.
	DataDir string
	// Listen is the address of clients, mutual TLS only. Port 0 picks a free
	// one: see Server.Endpoint.
	Listen netip.AddrPort
	// Members are all members, with this one, of an etcd of three; empty for
	// one alone. They are chosen when the store is made.
	Members []Member
	// TLS is the server's certificate (issued for Listen's address) and the
	// CA that signs all clients.
	TLS pki.Files
	// Root is a certificate with the common name root (pki.RoleRoot).
	Root pki.Files
	// Peer is the certificate (pki.RoleEtcdPeer) by which members know each
	// other; needed with Members.
	Peer pki.Files

	// QuotaBytes bounds the database; at it etcd refuses writes. 0 means 8 GiB.
	QuotaBytes int64
	// History is how long watches can be resumed; 0 means 30 minutes. Of more
	// than HistoryRevisions (0: 5 million) the older are forgotten sooner.
	History          time.Duration
	HistoryRevisions int64
	// SnapshotDir gets a snapshot every SnapshotEvery (0: 6 hours), of which
	// SnapshotKeep (0: 8) stay. Empty takes none.
	SnapshotDir   string
	SnapshotEvery time.Duration
	SnapshotKeep  int
	// DiskReserve is the room on DataDir's disk below which writes are refused;
	// 0 means DefaultDiskReserve. DiskEvery is how often it is looked at; 0
	// means a second.
	DiskReserve int64
	DiskEvery   time.Duration
	// UpkeepEvery is how often the state is looked at; 0 means a minute.
	UpkeepEvery time.Duration
	// MinDefragment is the size from which on a database that is more than
	// half free is defragmented, which blocks its member; 0 means 64 MiB.
	MinDefragment int64

	// Heartbeat is how often the leader of several members tells that it is
	// there; ten times as long without it, and another is elected. 0 means
	// 100 ms.
	Heartbeat time.Duration
	// UnsafeNoFsync trades durability for speed: for labs and tests.
	UnsafeNoFsync bool
	// StartTimeout bounds Start; 0 means 30 s, or 5 minutes with Members,
	// which wait for each other.
	StartTimeout time.Duration
	Log          *slog.Logger
}

// Validate says what is wrong, all problems joined.
func (c ServerConfig) Validate() error {
	var errs []error
	if err := kvstore.ValidateClusterName(c.Cluster); err != nil {
		errs = append(errs, err)
	}
	for _, name := range c.Shared {
		if err := kvstore.ValidateClusterName(name); err != nil {
			errs = append(errs, err)
		}
	}
	if c.DataDir == "" {
		errs = append(errs, errors.New("no data directory"))
	}
	if !c.Listen.IsValid() {
		errs = append(errs, errors.New("no listen address"))
	}
	certs := map[string]pki.Files{"server": c.TLS, "root": c.Root}
	if len(c.Members) > 0 {
		certs["peer"] = c.Peer
		errs = append(errs, c.validateMembers()...)
	}
	for name, f := range certs {
		if f.CA == "" || f.Cert == "" || f.Key == "" {
			errs = append(errs, fmt.Errorf("%s certificate: CA, certificate and key files are all needed", name))
		}
	}
	if c.QuotaBytes < 0 || c.History < 0 || c.HistoryRevisions < 0 || c.SnapshotEvery < 0 || c.SnapshotKeep < 0 || c.MinDefragment < 0 || c.Heartbeat < 0 || c.DiskReserve < 0 || c.DiskEvery < 0 {
		errs = append(errs, errors.New("quota, history, heartbeat, disk and snapshot settings must not be negative"))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("embedded etcd configuration: %w", err)
	}
	return nil
}

func (c ServerConfig) validateMembers() []error {
	var errs []error
	if len(c.Members) != 3 {
		errs = append(errs, fmt.Errorf("%d members: 1 or 3 are possible", len(c.Members)))
	}
	seen := map[string]bool{}
	for _, m := range c.Members {
		for _, s := range []string{m.Name, m.Client.String(), m.Peer.String()} {
			if seen[s] {
				errs = append(errs, fmt.Errorf("member %s: %s is taken by another", m.Name, s))
			}
			seen[s] = true
		}
	}
	own, ok := c.self()
	switch {
	case !ok:
		errs = append(errs, fmt.Errorf("no member is named %q, as this one is", c.Name))
	case own.Client.Port() != c.Listen.Port():
		errs = append(errs, fmt.Errorf("member %s is reached at %s, but listens on %s", own.Name, own.Client, c.Listen))
	}
	return errs
}

// withDefaults fills in what was left at 0.
func (c ServerConfig) withDefaults() ServerConfig {
	if c.Name == "" {
		c.Name = singleName
	}
	if c.QuotaBytes == 0 {
		c.QuotaBytes = DefaultQuota
	}
	if c.History == 0 {
		c.History = DefaultHistory
	}
	if c.SnapshotEvery == 0 {
		c.SnapshotEvery = DefaultSnapshotEvery
	}
	if c.SnapshotKeep == 0 {
		c.SnapshotKeep = DefaultSnapshotKeep
	}
	if c.HistoryRevisions == 0 {
		c.HistoryRevisions = historyRevisions
	}
	if c.DiskReserve == 0 {
		c.DiskReserve = DefaultDiskReserve
	}
	if c.DiskEvery == 0 {
		c.DiskEvery = diskEvery
	}
	if c.UpkeepEvery == 0 {
		c.UpkeepEvery = upkeepEvery
	}
	if c.MinDefragment == 0 {
		c.MinDefragment = minDefragment
	}
	if c.StartTimeout == 0 {
		c.StartTimeout = startTimeout
		if len(c.Members) > 0 {
			c.StartTimeout = quorumTimeout
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// self is this member.
func (c ServerConfig) self() (Member, bool) {
	for _, m := range c.Members {
		if m.Name == c.Name {
			return m, true
		}
	}
	return Member{}, false
}

// peerURL is by which the members' list knows this one. A single member talks
// to no other: it has an address only on paper.
func (c ServerConfig) peerURL() string {
	if m, ok := c.self(); ok {
		u := m.peerURL()
		return u.String()
	}
	return singlePeer
}

// initialCluster is the members' list of a new store.
func (c ServerConfig) initialCluster() string {
	if len(c.Members) == 0 {
		return c.Name + "=" + singlePeer
	}
	var list []string
	for _, m := range c.Members {
		u := m.peerURL()
		list = append(list, m.Name+"="+u.String())
	}
	return strings.Join(list, ",")
}

func (c ServerConfig) token() string { return "hawser-" + c.Cluster }

func embedConfig(cfg ServerConfig, opts ...grpc.ServerOption) (*embed.Config, error) {
	c := embed.NewConfig()
	c.Name = cfg.Name
	c.Dir = cfg.DataDir
	listen := url.URL{Scheme: "https", Host: cfg.Listen.String()}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{listen}, []url.URL{listen}
	// etcd serves gRPC itself only on a port that has no HTTP; otherwise Go's
	// HTTP server does it, at two thirds of the speed. The HTTP, which nobody
	// asks, is put where it is in no one's way.
	c.ListenClientHttpUrls = []url.URL{{Scheme: "unixs", Host: "@hawser-etcd-" + rand.Text()}}
	peer, err := url.Parse(cfg.peerURL())
	if err != nil {
		return nil, fmt.Errorf("peer address of etcd member %s: %w", cfg.Name, err)
	}
	c.ListenPeerUrls, c.AdvertisePeerUrls = nil, []url.URL{*peer}
	c.InitialCluster = cfg.initialCluster()
	c.InitialClusterToken = cfg.token()
	if own, ok := cfg.self(); ok {
		c.ListenPeerUrls = []url.URL{*peer}
		c.AdvertiseClientUrls = []url.URL{{Scheme: "https", Host: own.Client.String()}}
		// Agents hold certificates of the same CA: only members may be peers.
		c.PeerTLSInfo = transport.TLSInfo{
			CertFile: cfg.Peer.Cert, KeyFile: cfg.Peer.Key, TrustedCAFile: cfg.Peer.CA, ClientCertAuth: true,
			AllowedCNs: []string{pki.ID{Cluster: cfg.Cluster, Role: pki.RoleEtcdPeer}.EtcdUser()},
		}
		if beat := uint(cfg.Heartbeat.Milliseconds()); beat > 0 {
			c.TickMs, c.ElectionMs = beat, electionBeats*beat
		}
	} else {
		c.TickMs, c.ElectionMs = 20, 200 // no one to lose an election to
	}
	c.ClientTLSInfo = transport.TLSInfo{
		CertFile: cfg.TLS.Cert, KeyFile: cfg.TLS.Key, TrustedCAFile: cfg.TLS.CA,
		ClientCertAuth: true,
	}
	c.TlsMinVersion = "TLS1.3"
	c.EnableGRPCGateway = false
	c.QuotaBackendBytes = cfg.QuotaBytes
	c.WatchProgressNotifyInterval = progressInterval
	c.AutoCompactionMode = embed.CompactorModePeriodic
	c.AutoCompactionRetention = cfg.History.String()
	c.UnsafeNoFsync = cfg.UnsafeNoFsync
	c.GRPCAdditionalServerOptions = append(tlsgrpc.ServerWindows(serverWindow), opts...)
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapLogger(cfg.Log))
	return c, nil
}
