// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/backoff"
	"github.com/hawser-mesh/hawser/kvstore"
)

// presenceTTL is how long a node counts as present after its agent is gone.
const presenceTTL = 60 // seconds

var errPresenceLost = errors.New("presence key was deleted")

// PresenceConfig is whose presence is kept.
type PresenceConfig struct {
	Client  kvstore.Client
	Cluster string
	Node    string
	BootID  string
	// HasPodCIDR says that the node has its IPv4 range and waits for none.
	HasPodCIDR bool
	// HasPodCIDR6 says the same of its IPv6 range.
	HasPodCIDR6 bool
	TTL         int64 // seconds; 0 means 60
	Now         func() time.Time
	Log         *slog.Logger
}

// Presence keeps local/<c>/presence/<node>, the node's one leased key. When the
// agent ends the key stays until its lease runs out, so that a restart is not
// seen as an absence.
type Presence struct{ cfg PresenceConfig }

// NewPresence returns a Presence; Run keeps it.
func NewPresence(cfg PresenceConfig) (*Presence, error) {
	if cfg.Client == nil || cfg.Cluster == "" || cfg.Node == "" {
		return nil, errors.New("presence: client, cluster and node are all needed")
	}
	if cfg.TTL == 0 {
		cfg.TTL = presenceTTL
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Presence{cfg: cfg}, nil
}

// Run keeps the key until the context ends and returns nil then; a key or lease
// that is lost is made again.
func (p *Presence) Run(ctx context.Context) error {
	wait := backoff.New(backoffMin, backoffMax)
	for {
		stored, err := p.hold(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if stored {
			wait.Reset()
		}
		p.cfg.Log.Warn("presence interrupted", "node", p.cfg.Node, "error", err)
		if wait.Wait(ctx) != nil {
			return nil
		}
	}
}

// hold stores the key under a lease of its own and returns when key, lease or
// connection are lost.
func (p *Presence) hold(ctx context.Context) (stored bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	k := kvstore.NewKey(kvstore.Local, p.cfg.Cluster, kvstore.KindPresence, p.cfg.Node)
	value, err := kvstore.Encode(k, &keyspacev1.Presence{
		Node: p.cfg.Node, BootId: p.cfg.BootID, HasPodCidr: p.cfg.HasPodCIDR, HasPodCidr6: p.cfg.HasPodCIDR6,
		UpdatedAt: p.cfg.Now().UnixNano(),
	})
	if err != nil {
		return false, err
	}
	lease, lost, err := p.cfg.Client.Grant(ctx, p.cfg.TTL)
	if err != nil {
		return false, err
	}
	go func() { // ends with ctx, which also ends the lease's renewal
		<-lost
		cancel(fmt.Errorf("lease of %s is lost", k))
	}()
	put := kvstore.Put(k.String(), value)
	put.Lease = lease
	res, err := p.cfg.Client.Txn(ctx, nil, []kvstore.Op{put}, nil)
	if err != nil {
		return false, err
	}
	err = p.cfg.Client.Watch(ctx, k.String(), res.Revision+1, func(b kvstore.WatchBatch) error {
		for _, ev := range b.Events {
			if ev.Deleted && ev.Key == k.String() {
				return errPresenceLost
			}
		}
		return nil
	})
	return true, err
}
