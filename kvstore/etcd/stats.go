// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/hawser-mesh/hawser/kvstore"
)

// Stats are an etcd's size, age and health.
type Stats struct {
	Keys          int64 // below the prefixes asked for
	DatabaseBytes int64 // allocated on disk, the largest member's
	InUseBytes    int64 // of these
	QuotaBytes    int64 // at which writes are refused; 0 when not known
	Revision      int64
	NoSpace       bool // the quota was reached: writes are refused
	Corrupt       bool // members differ
	Members       []MemberStats
	Snapshot      SnapshotInfo // the newest that this server took
	Disk          DiskInfo     // of this server
}

// MemberStats is one member as it answers.
type MemberStats struct {
	Name          string // empty when it does not answer
	Endpoint      string
	Leader        bool
	Learner       bool
	DatabaseBytes int64
	InUseBytes    int64
	Err           error // why it does not answer
}

// perMember bounds the question to one member.
const perMember = 2 * time.Second

// Stats asks each endpoint. Any user may ask, for the keys it may read. An error
// is one of counting keys; members that do not answer say so.
func (c *Client) Stats(ctx context.Context, prefixes ...string) (Stats, error) {
	var st Stats
	leader := uint64(0)
	ids := map[uint64]int{}
	for _, ep := range c.etcd.Endpoints() {
		m := MemberStats{Endpoint: ep}
		mctx, cancel := context.WithTimeout(ctx, perMember)
		r, err := c.etcd.Status(mctx, ep)
		cancel()
		if err != nil {
			m.Err = c.mapError(err)
			st.Members = append(st.Members, m)
			continue
		}
		leader = max(leader, r.Leader)
		ids[r.Header.MemberId] = len(st.Members)
		m.DatabaseBytes, m.InUseBytes, m.Learner = r.DbSize, r.DbSizeInUse, r.IsLearner
		st.DatabaseBytes, st.InUseBytes = max(st.DatabaseBytes, r.DbSize), max(st.InUseBytes, r.DbSizeInUse)
		st.QuotaBytes = r.DbSizeQuota
		st.Members = append(st.Members, m)
	}
	if i, ok := ids[leader]; ok {
		st.Members[i].Leader = true
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if list, err := c.etcd.MemberList(ctx, clientv3.WithSerializable()); err == nil {
		for _, m := range list.Members {
			if i, ok := ids[m.ID]; ok {
				st.Members[i].Name = m.Name
			}
		}
	}
	for _, p := range prefixes {
		count, err := c.etcd.Get(ctx, p, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return st, c.wrap("count", p, err)
		}
		st.Keys, st.Revision = st.Keys+count.Count, max(st.Revision, count.Header.Revision)
	}
	alarms, err := c.etcd.AlarmList(ctx)
	if err != nil {
		return st, c.wrap("read alarms of", c.endpoint, err)
	}
	st.NoSpace, st.Corrupt = hasAlarm(alarms, pb.AlarmType_NOSPACE), hasAlarm(alarms, pb.AlarmType_CORRUPT)
	return st, nil
}

// Count is the number of keys below a prefix.
func (c *Client) Count(ctx context.Context, prefix string) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	r, err := c.etcd.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return 0, c.wrap("count", prefix, err)
	}
	return r.Count, nil
}

func hasAlarm(r *clientv3.AlarmResponse, a pb.AlarmType) bool {
	return slices.ContainsFunc(r.Alarms, func(m *pb.AlarmMember) bool { return m.Alarm == a })
}

// Problem is what an operator should know of an etcd and do about it.
type Problem struct{ Object, Problem, Fix string }

// Problems are what is wrong. upkeep says that this process heals what can be
// healed.
func (s Stats) Problems(upkeep bool) []Problem {
	var out []Problem
	if s.Disk.Low {
		out = append(out, Problem{Object: "etcd", Problem: s.Disk.problem(), Fix: diskCure})
	}
	if s.NoSpace && !s.Disk.Low {
		p := Problem{
			Object:  "etcd",
			Problem: fmt.Sprintf("its database is full (%d of %d MiB, %d in use): writes are refused", s.DatabaseBytes>>20, s.QuotaBytes>>20, s.InUseBytes>>20),
			Fix: "find what fills it: hawser kvstore stats; then with etcd's root rights: etcdctl compact REVISION, " +
				"etcdctl defrag, etcdctl alarm disarm; or raise the quota",
		}
		if upkeep {
			p.Fix = "it is compacted and defragmented by itself within a minute; if this stays, find what fills it " +
				"(hawser kvstore stats), remove it, or restart the API server with a larger --etcd-quota"
		}
		out = append(out, p)
	}
	if s.Corrupt {
		out = append(out, Problem{
			Object: "etcd", Problem: "its members differ: it refuses writes",
			Fix: "replace the member that differs: hawser-apiserver member replace; or restore a backup",
		})
	}
	for _, m := range s.Members {
		if m.Err != nil {
			out = append(out, Problem{
				Object: "etcd member " + m.Endpoint, Problem: "does not answer: " + m.Err.Error(),
				Fix: "start its API server, or replace the member: hawser-apiserver member replace",
			})
		}
	}
	return out
}

// Compact forgets the history before rev. It needs root's rights; doing it twice
// is no error.
func (c *Client) Compact(ctx context.Context, rev int64) error { return c.compact(ctx, rev, false) }

// compact forgets the history before rev; physical waits until the space is
// free.
func (c *Client) compact(ctx context.Context, rev int64, physical bool) error {
	timeout, opts := c.timeout, []clientv3.CompactOption(nil)
	if physical {
		timeout, opts = slowTimeout, append(opts, clientv3.WithCompactPhysical())
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := c.etcd.Compact(ctx, rev, opts...)
	if err != nil && !errors.Is(c.mapError(err), kvstore.ErrCompacted) {
		return c.wrap("compact to", fmt.Sprint(rev), err)
	}
	return nil
}
