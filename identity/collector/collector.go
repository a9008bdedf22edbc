// SPDX-License-Identifier: Apache-2.0

// Package collector deletes the identity numbers of a cluster that no node uses,
// and keeps each from being given again until nobody can take it for its old
// labels.
//
// Start with Collector.Pass: it surveys the cluster's identities at one revision
// (Survey), deletes what was unused in two passes, each number in a transaction
// that a new reference defeats, and frees those retired numbers that Gate lets
// through. Exactly one Collector of a cluster works at a time; who that is, its
// caller decides. Who gets which number is identity/allocator's.
package collector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/kvstore"
)

// DefaultInterval is the time between passes.
const DefaultInterval = 15 * time.Minute

// ErrFenced says that another collector is at work.
var ErrFenced = errors.New("the right to collect identities is lost")

// Config is whose identities are collected.
type Config struct {
	Cluster string
	// First and Last bound the cluster's numbers: identity.Space.Range.
	First, Last identity.Number
	Client      kvstore.Client
	// Fence are conditions that hold while this Collector may write.
	Fence []kvstore.Cmp
	// Interval is the time between passes of Run; 0 means DefaultInterval.
	Interval time.Duration
	// Gate is read anew in each pass.
	Gate func(context.Context) (Gate, error)
	Now  func() time.Time // nil means time.Now
	Log  *slog.Logger
}

// Validate says what is wrong, all problems joined.
func (c Config) Validate() error {
	var errs []error
	if err := kvstore.ValidateClusterName(c.Cluster); err != nil {
		errs = append(errs, err)
	}
	if c.First <= identity.MaxReserved || c.Last <= c.First || c.Last.IsLocal() {
		errs = append(errs, fmt.Errorf("identity range %d-%d is not one of a cluster", c.First, c.Last))
	}
	if c.Client == nil || c.Gate == nil {
		errs = append(errs, errors.New("client and gate are both needed"))
	}
	if c.Interval < 0 {
		errs = append(errs, fmt.Errorf("interval %s is negative", c.Interval))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("identity collector: %w", err)
	}
	return nil
}

// Collector collects the identities of one cluster. It is not safe for
// concurrent use.
type Collector struct {
	cfg Config
	// unused are the numbers, and the hashes, that the last pass saw without
	// use, with the revisions of their keys.
	unused  map[identity.Number]int64
	strayed map[string]int64
}

// New returns a Collector that has seen nothing yet.
func New(cfg Config) (*Collector, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Interval == 0 {
		cfg.Interval = DefaultInterval
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Collector{cfg: cfg}, nil
}

// Run makes a pass in each interval until the context ends, and returns nil
// then; it returns ErrFenced when another took over. A pass that fails is logged
// and made again.
func (c *Collector) Run(ctx context.Context) error {
	t := time.NewTicker(c.cfg.Interval)
	defer t.Stop()
	for {
		r, err := c.Pass(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrFenced):
			return err
		case err != nil:
			c.cfg.Log.Warn("collect identities", "error", err)
		case r != Result{}:
			c.cfg.Log.Info("collected identities", "retired", r.Retired, "freed", r.Freed, "put_back", r.PutBack, "stray_keys", r.Stray)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Result counts what a pass did.
type Result struct {
	Retired int // numbers deleted
	Freed   int // retired numbers that may be given again
	PutBack int // retired numbers that a node uses after all
	Stray   int // labels keys that named a number of others, or none
}

// Pass surveys the identities once and acts on what it and the pass before saw.
func (c *Collector) Pass(ctx context.Context) (Result, error) {
	var r Result
	s, err := Look(ctx, c.cfg.Client, c.cfg.Cluster)
	if err != nil {
		return r, err
	}
	if err := c.collect(ctx, s, &r); err != nil {
		return r, err
	}
	if err := c.sweepLabels(ctx, s, &r); err != nil {
		return r, err
	}
	return r, c.free(ctx, s, &r)
}

// collect deletes the numbers that are unused now and were in the last pass.
func (c *Collector) collect(ctx context.Context, s *Survey, r *Result) error {
	before := c.unused
	c.unused = map[identity.Number]int64{}
	for n, id := range s.IDs {
		if n < c.cfg.First || n > c.cfg.Last || s.Used(n) {
			continue
		}
		if before[n] != id.rev {
			c.unused[n] = id.rev
			continue
		}
		done, err := c.retire(ctx, s, n, id)
		if err != nil {
			return fmt.Errorf("collect identity %d: %w", n, err)
		}
		if done {
			r.Retired++
			c.cfg.Log.Info("identity retired", "number", n, "labels", id.Labels.String())
		}
	}
	return nil
}

// retire deletes a number and its labels key unless a node has begun to use it.
func (c *Collector) retire(ctx context.Context, s *Survey, n identity.Number, id ID) (bool, error) {
	hash := id.Labels.Hash()
	retired, err := c.retiredOp(n, s.rememberedAs(n, hash))
	if err != nil {
		return false, err
	}
	conds := []kvstore.Cmp{kvstore.AtRevision(c.idKey(n), id.rev), c.unreferenced(n)}
	ops := []kvstore.Op{kvstore.Delete(c.idKey(n)), retired}
	if k, ok := s.byLabels[hash]; ok && k.number == n {
		conds = append(conds, kvstore.AtRevision(c.labelsKey(hash), k.rev))
		ops = append(ops, kvstore.Delete(c.labelsKey(hash)))
	}
	return c.commit(ctx, conds, ops)
}

// sweepLabels deletes labels keys that lead nowhere, in this pass and the last:
// to no number, or to one of other labels.
func (c *Collector) sweepLabels(ctx context.Context, s *Survey, r *Result) error {
	before := c.strayed
	c.strayed = map[string]int64{}
	named := map[identity.Number]int{}
	for _, k := range s.byLabels {
		named[k.number]++
	}
	for hash, k := range s.byLabels {
		id, exists := s.IDs[k.number]
		if exists && id.Labels.Hash() == hash || s.Used(k.number) && !exists {
			continue
		}
		if before[hash] != k.rev {
			c.strayed[hash] = k.rev
			continue
		}
		conds := []kvstore.Cmp{kvstore.AtRevision(c.labelsKey(hash), k.rev)}
		ops := []kvstore.Op{kvstore.Delete(c.labelsKey(hash))}
		if exists {
			conds = append(conds, kvstore.AtRevision(c.idKey(k.number), id.rev))
		} else {
			// Somebody may remember the number under these labels.
			as := ""
			if named[k.number] == 1 {
				as = s.rememberedAs(k.number, hash)
			}
			retired, err := c.retiredOp(k.number, as)
			if err != nil {
				return err
			}
			conds = append(conds, kvstore.Absent(c.idKey(k.number)), c.unreferenced(k.number))
			ops = append(ops, retired)
		}
		done, err := c.commit(ctx, conds, ops)
		if err != nil {
			return fmt.Errorf("remove stray labels %s: %w", hash, err)
		}
		if done {
			r.Stray++
		}
	}
	return nil
}

// free lets go of the retired numbers that are in use again, and of those that
// the gate lets through.
func (c *Collector) free(ctx context.Context, s *Survey, r *Result) error {
	if len(s.Retired) == 0 {
		return nil
	}
	gate, err := c.cfg.Gate(ctx)
	if err != nil {
		return fmt.Errorf("free retired identities: %w", err)
	}
	for n, retired := range s.Retired {
		key := c.retiredKey(n)
		conds := []kvstore.Cmp{kvstore.AtRevision(key, retired.Revision)}
		_, back := s.IDs[n]
		switch {
		case back:
			conds = append(conds, kvstore.Cmp{Key: c.idKey(n), Target: kvstore.CmpExists})
		case gate.WaitsFor(retired) != "":
			continue
		}
		done, err := c.commit(ctx, conds, []kvstore.Op{kvstore.Delete(key)})
		switch {
		case err != nil:
			return fmt.Errorf("free identity %d: %w", n, err)
		case done && back:
			r.PutBack++
		case done:
			r.Freed++
		}
	}
	return nil
}

// commit applies ops if the conditions hold and this Collector may still write.
func (c *Collector) commit(ctx context.Context, conds []kvstore.Cmp, ops []kvstore.Op) (bool, error) {
	res, err := c.cfg.Client.Txn(ctx, append(conds, c.cfg.Fence...), ops, nil)
	if err != nil || res.Succeeded || len(c.cfg.Fence) == 0 {
		return res.Succeeded, err
	}
	res, err = c.cfg.Client.Txn(ctx, c.cfg.Fence, nil, nil)
	if err == nil && !res.Succeeded {
		err = ErrFenced
	}
	return false, err
}

// retiredOp retires a number that stood for the labels of a hash; "" if that is
// not known, or it did for several.
func (c *Collector) retiredOp(n identity.Number, hash string) (kvstore.Op, error) {
	k := kvstore.NewKey(kvstore.Local, c.cfg.Cluster, kvstore.KindRetired, kvstore.NumberName(uint32(n)))
	v, err := kvstore.Encode(k, &keyspacev1.IdentityRef{Number: uint32(n), LabelsHash: hash, UpdatedAt: c.cfg.Now().UnixNano()})
	return kvstore.Put(k.String(), v), err
}

// unreferenced holds while no node refers to a number.
func (c *Collector) unreferenced(n identity.Number) kvstore.Cmp {
	dir := kvstore.KindPrefix(kvstore.Local, c.cfg.Cluster, kvstore.KindRef) + kvstore.NumberName(uint32(n)) + "/"
	return kvstore.Cmp{Key: dir, Prefix: true, Target: kvstore.CmpAbsent}
}

func (c *Collector) idKey(n identity.Number) string {
	return kvstore.NewKey(kvstore.State, c.cfg.Cluster, kvstore.KindIdentity, kvstore.NumberName(uint32(n))).String()
}

func (c *Collector) labelsKey(hash string) string {
	return kvstore.NewKey(kvstore.State, c.cfg.Cluster, kvstore.KindIdentityLabels, hash).String()
}

func (c *Collector) retiredKey(n identity.Number) string {
	return kvstore.NewKey(kvstore.Local, c.cfg.Cluster, kvstore.KindRetired, kvstore.NumberName(uint32(n))).String()
}
