// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/observe/stages"
)

// Config is what a Manager is told. Zero values of durations and sizes mean the
// default in brackets.
type Config struct {
	// Cluster describes the own cluster: what peers are shown at a join and
	// what their ranges are compared with. Its Endpoints are put into tokens.
	Cluster *keyspacev1.Cluster
	// Listen is the federation port's host:port; empty with Deps.Listener
	// nil: dial only.
	Listen string
	// Replica names this API server among those of the cluster. It is the
	// same after a restart.
	Replica string

	HeartbeatEvery time.Duration // [500 ms]
	LostAfter      time.Duration // silence after which a peer is shown as lost [1.5 s]
	CloseAfter     time.Duration // silence after which its stream is given up [5 s]
	StaleAfter     time.Duration // [5 min]
	ExpireAfter    time.Duration // [24 h]; below 0: never
	BackoffMin     time.Duration // between dials [100 ms]
	BackoffMax     time.Duration // [5 s]
	IdlePersist    time.Duration // how often an idle position is stored [1 min]
	RepairEvery    time.Duration // how often a copy is made again at most that somebody keeps changing [1 min]; below 0: only when a stream begins

	Window       uint64 // batches not yet acknowledged [8]
	BatchChanges int    // [1,000]
	BatchBytes   int    // before compression [1 MiB]
}

// Deps are what a Manager works with.
type Deps struct {
	KV    kvstore.Client
	Creds peering.Credentials
	// Now is the wall clock [time.Now].
	Now func() time.Time
	Log *slog.Logger
	// Explain answers peers about our policies; nil: they are told nothing.
	Explain Explainer
	// Observe is told how long the stages of a peer's changes took. It must not
	// block; nil: nobody is told.
	Observe func(peer string, s stages.Stage, took time.Duration)
	// PutBack is told of each record of ours, or marker of a peer, that was written again because
	// somebody else had removed or changed it, and of what was found instead (nil:
	// nothing). It must not block; nil: nobody is told.
	PutBack func(key kvstore.Key, found *kvstore.KV)
	// Listener overrides Config.Listen; the Manager closes it.
	Listener net.Listener
}

func (c *Config) setDefaults() {
	duration := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	duration(&c.HeartbeatEvery, 500*time.Millisecond)
	duration(&c.LostAfter, 1500*time.Millisecond)
	duration(&c.CloseAfter, 5*time.Second)
	duration(&c.StaleAfter, 5*time.Minute)
	duration(&c.ExpireAfter, 24*time.Hour)
	duration(&c.BackoffMin, 100*time.Millisecond)
	duration(&c.BackoffMax, 5*time.Second)
	duration(&c.IdlePersist, time.Minute)
	duration(&c.RepairEvery, time.Minute)
	if c.Window == 0 {
		c.Window = 8
	}
	if c.BatchChanges == 0 {
		c.BatchChanges = 1000
	}
	if c.BatchBytes == 0 {
		c.BatchBytes = 1 << 20
	}
}

// Validate says all that is wrong with the configuration.
func (c *Config) Validate() error {
	var errs []error
	if err := kvstore.ValidateClusterName(c.Cluster.GetName()); err != nil {
		errs = append(errs, err)
	}
	if _, err := peering.GrantFor(c.Cluster); err != nil {
		errs = append(errs, err)
	}
	if c.Replica == "" {
		errs = append(errs, errors.New("replica has no name"))
	}
	if c.HeartbeatEvery < 0 || c.LostAfter < c.HeartbeatEvery || c.CloseAfter < c.LostAfter {
		errs = append(errs, fmt.Errorf("heartbeat %s, lost after %s, close after %s: each must be at least the one before", c.HeartbeatEvery, c.LostAfter, c.CloseAfter))
	}
	if c.BatchChanges < 0 || c.BatchBytes < 0 || c.BatchChanges > maxBatchChanges || c.BatchBytes > maxBatchBytes/4 {
		errs = append(errs, fmt.Errorf("batches of %d changes or %d bytes are not possible", c.BatchChanges, c.BatchBytes))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("federation config: %w", err)
	}
	return nil
}
