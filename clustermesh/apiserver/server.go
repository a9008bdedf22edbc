// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/clustermesh/enrol"
	"github.com/hawser-mesh/hawser/clustermesh/federation"
	"github.com/hawser-mesh/hawser/internal/backoff"
	"github.com/hawser-mesh/hawser/internal/rest"
	"github.com/hawser-mesh/hawser/internal/unixsocket"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/cas"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
	"github.com/hawser-mesh/hawser/observe/metrics"
)

// Server is a mesh API server.
type Server struct {
	hawserv1.UnimplementedMeshServer

	cfg     Config
	log     *slog.Logger
	started time.Time

	creds       *certificates
	etcd        *etcd.Server // nil when the etcd is external
	client      *etcd.Client
	kv          kvstore.Client // the same
	incarnation string
	mesh        *federation.Manager
	enrol       *enrol.Service
	watchman    *watchman
	reopen      chan *errReopen // capacity 1
	opened      [][]byte        // the CAs that it believes since it began, the signing one first
	settled     string          // phase of the CA's replacement of which all is told; followRotation's own
	unwanted    refusals        // clusters of a shared etcd
	judged      judgements      // the same
	declared    declared        // peers of --peers-file
	cut         cutOffs         // peers
	held        held            // departed nodes
	ranges      rangeProblems   // of nodes
	back        putBacks
	restoring   sync.Mutex // a snapshot; held for good by a restore that succeeds
	applying    sync.Mutex // of a service, so that manifests at once do not overtake each other

	portListener net.Listener  // nil without an API port
	refused      atomic.Uint64 // calls on it, for the caller's certificate
	timers       *timers
}

func newServer(cfg Config) *Server {
	return &Server{cfg: cfg, log: cfg.Log.With("cluster", cfg.Cluster), started: time.Now(), reopen: make(chan *errReopen, 1), timers: newTimers(),
		judged: judgements{wanted: make(chan struct{}, 1), last: map[string]*hawserv1.PeerStatus{}}}
}

// Run starts an API server and blocks until the context ends or a part of it
// fails. Its errors name what could not be started and why. When the store has
// another history (an import, a restored backup) it begins anew; one that came
// back empty has its access rules set up later, and is waited for.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	anew, wait := false, backoff.New(watchRetryMin, watchRetryMax)
	for {
		err := runOnce(ctx, cfg)
		var again *errReopen
		switch {
		case ctx.Err() != nil:
			return err
		case errors.As(err, &again):
			anew = true
		case anew && errors.Is(err, kvstore.ErrDenied):
			cfg.Log.Warn("API server waits for the keyspace's access rules", "cluster", cfg.Cluster, "error", err)
			if wait.Wait(ctx) != nil {
				return err
			}
			continue
		default:
			return err
		}
		cfg.Log.Warn("API server starts anew", "cluster", cfg.Cluster, "why", again.why)
		if again.restored == nil {
			continue
		}
		former, err := again.restored.Commit(ctx)
		if err != nil {
			return err
		}
		cfg.Log.Warn("etcd's data was replaced by a snapshot", "former data", former, "snapshot revision", again.restored.Revision)
	}
}

func runOnce(ctx context.Context, cfg Config) error {
	s := newServer(cfg)
	defer s.close()
	if err := s.open(ctx); err != nil {
		return err
	}
	return s.serve(ctx)
}

// open brings up the keyspace and what the rest stands on.
func (s *Server) open(ctx context.Context) error {
	var err error
	if s.creds, err = newCredentials(&s.cfg, s.started); err != nil {
		return err
	}
	for _, c := range s.creds.CA() {
		s.opened = append(s.opened, c.Raw)
	}
	if err = s.openKeyspace(ctx); err != nil {
		return err
	}
	own := kvstore.NewKey(kvstore.State, s.cfg.Cluster, kvstore.KindCluster)
	if _, err := s.putIfChanged(ctx, own, s.cfg.record()); errors.Is(err, kvstore.ErrNoSpace) {
		s.log.Error("cluster record not published", "error", err) // status tells the cure, so it must come up
	} else if err != nil {
		return fmt.Errorf("publish the cluster record: %w", err)
	}
	if err := s.publishTrust(ctx); errors.Is(err, kvstore.ErrNoSpace) {
		s.log.Error("CAs not published", "error", err)
	} else if err != nil {
		return err
	}
	if s.mesh, err = s.newFederation(); err != nil {
		return err
	}
	s.watchman = newWatchman(s)
	if err := s.openEnrolment(ctx); err != nil {
		return err
	}
	return s.openPort(ctx)
}

func (s *Server) close() {
	if s.portListener != nil {
		_ = s.portListener.Close()
	}
	if s.kv != nil {
		_ = s.kv.Close()
	}
	if s.etcd != nil {
		s.etcd.Close()
	}
}

// serve runs all parts until one fails or the context ends.
func (s *Server) serve(ctx context.Context) error {
	lis, err := unixsocket.Listen(ctx, s.cfg.Socket)
	if err != nil {
		return err
	}
	monitoring, err := metrics.Listen(ctx, s.cfg.MetricsListen)
	if err != nil {
		return err
	}
	api := grpc.NewServer()
	hawserv1.RegisterMeshServer(api, s)
	g, ctx := errgroup.WithContext(ctx)
	web, err := rest.Gateway(ctx, s.cfg.Socket, hawserv1.RegisterMeshHandler)
	if err != nil {
		return err
	}
	if monitoring != nil {
		h := metrics.Handler(metrics.NewCollector(Metrics(), s.metricsSource(), s.log, s.timers.kept()...), s.healthy)
		g.Go(func() error { return metrics.Serve(ctx, monitoring, h) })
	}
	if s.portListener != nil {
		g.Go(func() error { return s.servePort(ctx, web) })
	}
	g.Go(func() error { return s.mesh.Run(ctx) })
	g.Go(func() error { return s.keepMarkers(ctx) })
	g.Go(func() error { return s.keepDeclared(ctx) })
	g.Go(func() error { return s.followRotation(ctx) })
	g.Go(func() error { return s.keepJudging(ctx) })
	g.Go(func() error { return s.creds.keep(ctx, time.Now, s.log) })
	g.Go(func() error { return s.watchIncarnation(ctx) })
	g.Go(func() error { return s.lead(ctx) })
	g.Go(func() error { return s.watchman.run(ctx) })
	g.Go(func() error { return rest.Serve(lis, api, web) })
	g.Go(func() error {
		defer stopAPI(api)
		select {
		case <-ctx.Done():
			return nil
		case again := <-s.reopen:
			return again
		case err := <-s.etcdErr():
			return fmt.Errorf("embedded etcd: %w", err)
		}
	})
	s.log.Info("API server is ready", "etcd", s.client.Endpoint(), "federation", s.cfg.ListenFederation, "socket", s.cfg.Socket,
		"api", s.cfg.advertisedAPI(), "incarnation", s.incarnation)
	err = g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// stopAPI lets calls that are being answered end, for a moment.
func stopAPI(api *grpc.Server) {
	const patience = time.Second
	t := time.AfterFunc(patience, api.Stop)
	defer t.Stop()
	api.GracefulStop()
}

// apiError gives an error of the keyspace the code that callers act on.
func apiError(err error) error {
	var bad *kvstore.BadRecord
	switch {
	case err == nil:
		return nil
	case errors.As(err, &bad):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, cas.ErrConflict):
		return status.Error(codes.Aborted, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	}
	var inner interface {
		error
		GRPCStatus() *status.Status
	}
	if errors.As(err, &inner) {
		// The words around the status stay, its own wrapping goes.
		text := strings.Replace(err.Error(), inner.Error(), inner.GRPCStatus().Message(), 1)
		return status.Error(inner.GRPCStatus().Code(), text)
	}
	return status.Error(codes.Internal, err.Error())
}
