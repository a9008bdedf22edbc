// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/backoff"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// EtcdConfig is where the cluster's keys are kept. Its zero value is an etcd of
// one member inside the API server.
type EtcdConfig struct {
	// Endpoints are the members of an external etcd; empty means embedded.
	Endpoints []string
	// TLSDir holds ca.crt, tls.crt and tls.key with which an external etcd is
	// reached; the common name must be <cluster>-apiserver.
	TLSDir string
	// Shared says that other clusters keep their keys in the same external
	// etcd: nothing is mirrored.
	Shared bool

	// Members are the members of an embedded etcd of three, of which Replica
	// names this one. They are chosen when the cluster is made.
	Members []etcd.Member

	Quota         int64         // bytes; 0 means 8 GiB
	History       time.Duration // 0 means 30 minutes
	SnapshotDir   string        // empty takes none
	SnapshotEvery time.Duration // 0 means 6 hours
	SnapshotKeep  int           // 0 means 8
}

// Modes of the keyspace.
const (
	modeEmbedded = "embedded"
	modeExternal = "external"
	modeShared   = "shared"
)

func (c EtcdConfig) mode() string {
	switch {
	case c.Shared:
		return modeShared
	case len(c.Endpoints) > 0:
		return modeExternal
	}
	return modeEmbedded
}

func (c EtcdConfig) validate(listen netip.AddrPort) []error {
	var errs []error
	external := len(c.Endpoints) > 0
	if external != (c.TLSDir != "") {
		errs = append(errs, errors.New("--etcd-endpoint and --etcd-tls-dir belong together"))
	}
	if c.TLSDir != "" && !filepath.IsAbs(c.TLSDir) {
		errs = append(errs, fmt.Errorf("--etcd-tls-dir %q: must be an absolute path", c.TLSDir))
	}
	if c.Shared && !external {
		errs = append(errs, errors.New("--shared-etcd: an etcd that clusters share is external: give --etcd-endpoint and --etcd-tls-dir"))
	}
	if external && len(c.Members) > 0 {
		errs = append(errs, errors.New("--etcd-member: an external etcd has its own members"))
	}
	if !external && !listen.IsValid() {
		errs = append(errs, errors.New("--listen-etcd: must be ADDRESS:PORT"))
	}
	if c.Quota < 0 || c.History < 0 || c.SnapshotEvery < 0 || c.SnapshotKeep < 0 {
		errs = append(errs, errors.New("--etcd-quota, --etcd-history, --snapshot-interval and --snapshot-keep: must not be negative"))
	}
	return errs
}

// etcdServer is the embedded etcd that the configuration asks for.
func (c *Config) etcdServer(creds *certificates) etcd.ServerConfig {
	s := etcd.ServerConfig{
		Cluster: c.Cluster, DataDir: filepath.Join(c.DataDir, "etcd"), Listen: c.ListenEtcd,
		TLS: creds.server, Root: creds.root, Peer: creds.peer,
		QuotaBytes: c.Etcd.Quota, History: c.Etcd.History,
		SnapshotDir: c.Etcd.SnapshotDir, SnapshotEvery: c.Etcd.SnapshotEvery, SnapshotKeep: c.Etcd.SnapshotKeep,
		UnsafeNoFsync: c.UnsafeNoFsync, Log: c.Log,
	}
	if len(c.Etcd.Members) > 0 {
		s.Name, s.Members = c.Replica, c.Etcd.Members
	}
	return s
}

// openKeyspace starts the embedded etcd, if that is what is used, and connects.
func (s *Server) openKeyspace(ctx context.Context) error {
	endpoints, files, server := s.cfg.Etcd.Endpoints, pki.FilesIn(s.cfg.Etcd.TLSDir, "tls"), (*pki.ID)(nil)
	if s.cfg.Etcd.mode() == modeEmbedded {
		var err error
		if s.etcd, err = etcd.Start(ctx, s.cfg.etcdServer(s.creds)); err != nil {
			return err
		}
		if st, err := s.etcd.Stats(ctx); err == nil && st.NoSpace && !st.Disk.Low {
			if err := s.etcd.Heal(ctx); err != nil {
				s.log.Error("etcd is full", "error", err)
			}
		}
		endpoints, files = s.etcd.Endpoints(), s.creds.server
		server = &pki.ID{Cluster: s.cfg.Cluster, Role: pki.RoleAPIServer}
	}
	tls, err := files.ClientTLS(server)
	if err != nil {
		return err
	}
	if s.client, err = etcd.NewClient(etcd.ClientConfig{Endpoints: endpoints, TLS: tls, Observe: s.timers.etcd.Observe, Log: s.log}); err != nil {
		return err
	}
	s.kv = s.client
	s.incarnation, err = store.EnsureIncarnation(ctx, s.kv, s.cfg.Cluster)
	if errors.Is(err, kvstore.ErrDenied) {
		return fmt.Errorf("%w\nset up users and roles with etcd's root rights: hawser-apiserver etcd-access --cluster %s", err, s.cfg.Cluster)
	}
	return err
}

// etcdEndpoints are the URLs by which nodes reach etcd, all members.
func (s *Server) etcdEndpoints() []string {
	if s.etcd == nil {
		return s.cfg.Etcd.Endpoints
	}
	var out []string
	for _, e := range s.etcd.Endpoints() {
		out = append(out, "https://"+e)
	}
	return out
}

// stats asks etcd for its size and health.
func (s *Server) stats(ctx context.Context) (etcd.Stats, error) {
	if s.etcd != nil {
		return s.etcd.Stats(ctx)
	}
	return s.client.Stats(ctx, kvstore.SubtreePrefix(kvstore.State),
		kvstore.Prefix(kvstore.Local, s.cfg.Cluster), kvstore.Prefix(kvstore.Private, s.cfg.Cluster))
}

// reportEtcd tells how etcd is.
func (s *Server) reportEtcd(r *hawserv1.ClusterStatusReport, st etcd.Stats) {
	r.EtcdMode, r.EtcdEndpoint = s.cfg.Etcd.mode(), s.client.Endpoint()
	if s.etcd != nil {
		r.EtcdEndpoint = s.etcd.Endpoint()
	}
	r.DatabaseInUseBytes, r.QuotaBytes = uint64(st.InUseBytes), uint64(st.QuotaBytes)
	if !st.Snapshot.Time.IsZero() {
		r.SnapshotAt, r.SnapshotPath = st.Snapshot.Time.UnixNano(), st.Snapshot.Path
	}
	for _, m := range st.Members {
		e := &hawserv1.EtcdMember{
			Name: m.Name, Endpoint: m.Endpoint, Leader: m.Leader,
			DatabaseBytes: uint64(m.DatabaseBytes), DatabaseInUseBytes: uint64(m.InUseBytes),
		}
		if m.Err != nil {
			e.Problem = m.Err.Error()
		}
		r.EtcdMembers = append(r.EtcdMembers, e)
	}
	for _, p := range st.Problems(s.etcd != nil) {
		r.Problems = append(r.Problems, &hawserv1.Problem{Object: p.Object, Problem: p.Problem, Fix: p.Fix})
	}
	const late = 2 // intervals
	every := s.cfg.Etcd.SnapshotEvery
	if every == 0 {
		every = etcd.DefaultSnapshotEvery
	}
	if s.etcd != nil && s.cfg.Etcd.SnapshotDir != "" && time.Since(s.started) > late*every && time.Since(st.Snapshot.Time) > late*every {
		r.Problems = append(r.Problems, &hawserv1.Problem{
			Object: "etcd snapshots", Problem: "none was taken for more than " + (late * every).String(),
			Fix: "see the API server's log; is " + s.cfg.Etcd.SnapshotDir + " writable and its disk not full?",
		})
	}
}

// etcdErr delivers the error of an embedded etcd that died; of others never
// anything.
func (s *Server) etcdErr() <-chan error {
	if s.etcd != nil {
		return s.etcd.Err()
	}
	return nil
}

// errReopen ends a run that begins anew: on restored data, or because the store
// has another history.
type errReopen struct {
	why      string
	restored *etcd.Restored
}

func (e *errReopen) Error() string { return e.why }

const (
	watchRetryMin = 100 * time.Millisecond
	watchRetryMax = 5 * time.Second
)

// watchIncarnation ends with errReopen when the store is named anew (an import,
// a restore by hand) or was wiped.
func (s *Server) watchIncarnation(ctx context.Context) error {
	key := kvstore.NewKey(kvstore.Private, s.cfg.Cluster, kvstore.KindIncarnation).String()
	return s.follow(ctx, key, func(kv *kvstore.KV) error {
		if kv != nil && string(kv.Value) == s.incarnation {
			return nil
		}
		return &errReopen{why: "the store has another history: its incarnation changed"}
	})
}

// follow calls changed with a key's value, nil while it has none, at first and
// at each change, until the context ends or changed ends it with an errReopen.
func (s *Server) follow(ctx context.Context, key string, changed func(*kvstore.KV) error) error {
	wait := backoff.New(watchRetryMin, watchRetryMax)
	for {
		kv, rev, err := s.kv.Get(ctx, key)
		if err == nil {
			wait.Reset()
			if err := changed(kv); err != nil {
				return err
			}
			err = s.kv.Watch(ctx, key, rev+1, func(b kvstore.WatchBatch) error {
				for _, ev := range b.Events {
					if ev.Key != key {
						continue
					}
					var now *kvstore.KV
					if !ev.Deleted {
						now = &ev.KV
					}
					if err := changed(now); err != nil {
						return err
					}
				}
				return nil
			})
		}
		var again *errReopen
		if errors.As(err, &again) {
			return err
		}
		if wait.Wait(ctx) != nil {
			return nil
		}
	}
}

// prepareRestored is what a restored store needs before agents see it: it must be
// this cluster's, and is another history from now on.
func (s *Server) prepareRestored(ctx context.Context, c *etcd.Client) (incarnation string, err error) {
	return prepareRestored(ctx, c, s.cfg.Cluster)
}

func prepareRestored(ctx context.Context, c *etcd.Client, cluster string) (string, error) {
	own := kvstore.NewKey(kvstore.State, cluster, kvstore.KindCluster).String()
	kv, _, err := c.Get(ctx, own)
	if err != nil {
		return "", err
	}
	if kv == nil {
		return "", fmt.Errorf("it holds no cluster %s (no key %s)", cluster, own)
	}
	return store.Reincarnate(ctx, c, cluster)
}

// RestoreOffline replaces the data of the API server's stopped embedded etcd by
// a snapshot's and returns where the former data is. Of three members it makes
// the first of a new store: the others are to be joined with ReplaceMember.
func RestoreOffline(ctx context.Context, cfg Config, snapshot string) (former string, err error) {
	server, err := offline(cfg)
	if err != nil {
		return "", err
	}
	return etcd.Restore(ctx, server, snapshot, func(ctx context.Context, c *etcd.Client) error {
		_, err := prepareRestored(ctx, c, cfg.Cluster)
		return err
	})
}

// ReplaceMember makes a place for this replica's stopped embedded etcd among the
// other members, and returns where its former data is. It joins when the API
// server starts.
func ReplaceMember(ctx context.Context, cfg Config) (former string, err error) {
	server, err := offline(cfg)
	if err != nil {
		return "", err
	}
	return etcd.ReplaceMember(ctx, server)
}

// offline is the embedded etcd of an API server that does not run.
func offline(cfg Config) (etcd.ServerConfig, error) {
	if err := cfg.Validate(); err != nil {
		return etcd.ServerConfig{}, err
	}
	if mode := cfg.Etcd.mode(); mode != modeEmbedded {
		return etcd.ServerConfig{}, fmt.Errorf("the etcd of cluster %s is %s: use its own tools (etcdutl), then hawser-apiserver etcd-access --restored", cfg.Cluster, mode)
	}
	creds, err := newCredentials(&cfg, time.Now())
	if err != nil {
		return etcd.ServerConfig{}, err
	}
	return cfg.etcdServer(creds), nil
}

// MakeCA makes the cluster's CA below dataDir, for copying it to every replica
// before the first start. An existing one stays.
func MakeCA(dataDir, cluster string, now time.Time) error {
	if err := kvstore.ValidateClusterName(cluster); err != nil {
		return err
	}
	_, err := pki.EnsureCA(PKIDir(dataDir), cluster, now)
	return err
}

// uploads is where snapshots to be restored are written.
func (s *Server) uploads() (*os.File, error) {
	return os.CreateTemp(s.cfg.DataDir, "restore-*.snapshot") // made 0600
}
