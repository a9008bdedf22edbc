// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	// slowTimeout bounds what takes a member long: defragmenting, physical
	// compaction.
	slowTimeout = 2 * time.Minute
	// healed is the share of the quota below which writes are allowed again.
	healed = 0.9
	// historyShare is the share of the quota above which history makes room for
	// what is written, but for the newest keptRevisions: who writes large records
	// without end, as a peer may, must not stop all writes.
	historyShare  = 0.7
	keptRevisions = 1000
)

// keepUp looks after the store until the context ends: the leader bounds the
// history, heals a full database and defragments; every member takes its
// snapshots. (etcd itself compacts by time.)
func (s *Server) keepUp(ctx context.Context) {
	t := time.NewTicker(s.cfg.UpkeepEvery)
	defer t.Stop()
	s.mu.Lock()
	s.snapshot = newestSnapshot(s.cfg.SnapshotDir)
	s.mu.Unlock()
	for {
		if s.leads() {
			if err := s.upkeep(ctx); err != nil && ctx.Err() == nil {
				s.cfg.Log.Warn("upkeep of etcd", "error", err)
			}
		}
		if err := s.snapshotIfDue(ctx, time.Now()); err != nil && ctx.Err() == nil {
			s.cfg.Log.Error("snapshot of etcd not taken", "directory", s.cfg.SnapshotDir, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (s *Server) upkeep(ctx context.Context) error {
	var errs []error
	if rev := s.etcd.Server.KV().Rev() - s.cfg.HistoryRevisions; rev > s.etcd.Server.KV().FirstRev() {
		errs = append(errs, s.Compact(ctx, rev))
	}
	st, err := s.all.Stats(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	if st.Disk = s.diskInfo(); st.Disk.Low {
		return errors.Join(errs...) // defragmenting takes room; watchDisk ends the alarm
	}
	if st.NoSpace {
		return errors.Join(append(errs, s.Heal(ctx))...)
	}
	return errors.Join(append(errs, s.defragment(ctx, st, false))...)
}

// boundHistory forgets history while the database fills up with it.
func (s *Server) boundHistory(ctx context.Context) error {
	if !s.leads() || float64(s.etcd.Server.Backend().SizeInUse()) < float64(s.cfg.QuotaBytes)*historyShare {
		return nil
	}
	kv := s.etcd.Server.KV()
	rev := kv.Rev() - keptRevisions
	if rev <= kv.FirstRev() {
		return nil
	}
	s.cfg.Log.Info("etcd's database fills up; its history is forgotten", "before revision", rev, "quota", s.cfg.QuotaBytes)
	return s.Compact(ctx, rev)
}

// Heal makes a full database writable again: it forgets all history,
// defragments every member and ends the alarm. Watches that lag behind list
// again. When the keys alone fill the database the alarm stays, and the error
// says so.
func (s *Server) Heal(ctx context.Context) error {
	_, rev, err := s.all.Get(ctx, kvstore.Root)
	if err != nil {
		return fmt.Errorf("heal a full etcd: %w", err)
	}
	if err := s.all.compact(ctx, rev, true); err != nil {
		return fmt.Errorf("heal a full etcd: %w", err)
	}
	st, err := s.all.Stats(ctx)
	if err != nil {
		return fmt.Errorf("heal a full etcd: %w", err)
	}
	if err := s.defragment(ctx, st, true); err != nil {
		return fmt.Errorf("heal a full etcd: %w", err)
	}
	if st, err = s.all.Stats(ctx); err != nil {
		return fmt.Errorf("heal a full etcd: %w", err)
	}
	if full := float64(s.cfg.QuotaBytes) * healed; float64(st.DatabaseBytes) > full {
		return fmt.Errorf("etcd is full and stays read-only: its keys alone take %d of %d bytes; remove some (hawser kvstore stats) or raise the quota",
			st.DatabaseBytes, s.cfg.QuotaBytes)
	}
	ctx, cancel := context.WithTimeout(ctx, s.all.timeout)
	defer cancel()
	alarms, err := s.all.etcd.AlarmList(ctx)
	if err != nil {
		return s.all.wrap("read alarms of", s.all.endpoint, err)
	}
	for _, a := range alarms.Alarms {
		if a.Alarm != pb.AlarmType_NOSPACE {
			continue
		}
		if _, err := s.all.etcd.AlarmDisarm(ctx, (*clientv3.AlarmMember)(a)); err != nil {
			return s.all.wrap("end alarm of", s.all.endpoint, err)
		}
	}
	s.cfg.Log.Warn("etcd was full; it is compacted and takes writes again", "bytes", st.DatabaseBytes, "quota", s.cfg.QuotaBytes)
	return nil
}

// defragment gives back what is free, one member at a time, the leader last:
// those of which more than half is, or all. A member does not answer meanwhile.
func (s *Server) defragment(ctx context.Context, st Stats, all bool) error {
	members := slices.Clone(st.Members)
	slices.SortStableFunc(members, func(a, b MemberStats) int { return cmp.Compare(number(a.Leader), number(b.Leader)) })
	var errs []error
	for _, m := range members {
		worth := m.DatabaseBytes >= s.cfg.MinDefragment && m.InUseBytes*2 < m.DatabaseBytes
		if m.Err != nil || !all && !worth {
			continue
		}
		dctx, cancel := context.WithTimeout(ctx, slowTimeout)
		start := time.Now()
		_, err := s.all.etcd.Defragment(dctx, m.Endpoint)
		cancel()
		if err != nil {
			errs = append(errs, s.all.wrap("defragment", m.Endpoint, err))
			break // a member that is not back must not be joined by another
		}
		s.cfg.Log.Info("etcd member defragmented", "member", m.Name, "bytes", m.DatabaseBytes, "in use", m.InUseBytes, "took", time.Since(start))
	}
	return errors.Join(errs...)
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// sleep waits, or fails with the context.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
