// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	keptRefusals = 10 // that status shows
	// maxStanding is how many refused keys of a peer are remembered.
	maxStanding = 1000
	// maxRefusedBytes is how much of their records is kept with them.
	maxRefusedBytes = 1 << 20
)

// refusal is something of a peer that was not taken, and why.
type refusal struct {
	bad   kvstore.BadRecord
	at    uint64 // in which order
	kept  bool   // value is what the record says; else it is not known any more
	value []byte
}

// refusals are what is refused of a peer: records as they are now, and the newest
// of what was refused of its streams.
type refusals struct {
	standing map[string]refusal // by key; up to maxStanding
	streams  []refusal          // up to keptRefusals
	count    uint64
	bytes    int // of the values in standing
}

func newRefusals() refusals { return refusals{standing: map[string]refusal{}} }

// stand notes that a key's record is refused as it is. A value is not copied.
func (r *refusals) stand(key string, bad *kvstore.BadRecord, value []byte) {
	r.settle(key)
	if len(r.standing) >= maxStanding {
		return
	}
	one := r.next(bad)
	if r.bytes+len(value) <= maxRefusedBytes {
		one.kept, one.value = true, value
		r.bytes += len(value)
	}
	r.standing[key] = one
}

// settle notes that a key's record is not refused any more.
func (r *refusals) settle(key string) {
	r.bytes -= len(r.standing[key].value)
	delete(r.standing, key)
}

// stream notes what is no record.
func (r *refusals) stream(bad *kvstore.BadRecord) {
	r.streams = append(r.streams, r.next(bad))
	if n := len(r.streams) - keptRefusals; n > 0 {
		r.streams = slices.Delete(r.streams, 0, n)
	}
}

func (r *refusals) next(bad *kvstore.BadRecord) refusal {
	r.count++
	return refusal{bad: kvstore.BadRecord{Key: bad.Key, Reason: bad.Reason, Detail: shorten(bad.Detail)}, at: r.count}
}

// forget begins anew with the records: all is sent again.
func (r *refusals) forget() {
	clear(r.standing)
	r.bytes = 0
}

// lines are the newest, the last of them last, as status shows them.
func (r *refusals) lines() []string {
	all := slices.AppendSeq(slices.Clone(r.streams), maps.Values(r.standing))
	slices.SortFunc(all, func(a, b refusal) int { return cmp.Compare(a.at, b.at) })
	var out []string
	for _, one := range all[max(0, len(all)-keptRefusals):] {
		out = append(out, fmt.Sprintf("%s: %s: %s", one.bad.Key, one.bad.Reason, one.bad.Detail))
	}
	return out
}

// rejudge has another grant judge what stands. What it allows is not refused any
// more, though it comes only with the next stream, which sends all anew; so is
// what is not known well enough to be judged.
func (r *refusals) rejudge(peer string, guard *peering.Guard) {
	prefix := kvstore.Prefix(kvstore.State, peer)
	for key, one := range r.standing {
		bad := one.again(peer, strings.TrimPrefix(key, prefix), guard)
		if bad == nil {
			r.settle(key)
			continue
		}
		one.bad.Reason, one.bad.Detail = bad.Reason, shorten(bad.Detail)
		r.standing[key] = one
	}
}

// again is why a grant refuses the record of a key; nil: it does not.
func (one *refusal) again(peer, rel string, guard *peering.Guard) *kvstore.BadRecord {
	if !one.kept {
		return nil
	}
	j := judge(peer, guard, &federationv1.Change{Key: rel, Value: one.value})
	switch {
	case j.err != nil:
		return j.err
	case j.surplus != nil:
		return j.surplus
	case one.bad.Reason == peering.ReasonLimit && overLimit(j, guard).Detail == one.bad.Detail:
		return &one.bad // the limit is what it was
	}
	return nil
}

// refuse notes what is wrong with a stream, or with what a peer says of itself.
func (p *peerState) refuse(bad *kvstore.BadRecord) {
	p.do(func() {
		p.refusedAt = p.now()
		p.refused[bad.Reason]++
		p.refusals.stream(bad)
	})
}

// refuseRecord notes a record that is not taken; it stands until the key says
// something else, or the grant.
func (p *peerState) refuseRecord(j judged, bad *kvstore.BadRecord) {
	p.do(func() {
		p.refused[bad.Reason]++
		p.refusals.stand(j.full, bad, j.said())
	})
}

// settle notes keys whose records are not refused any more.
func (p *peerState) settle(keys []string) {
	p.do(func() {
		for _, k := range keys {
			p.refusals.settle(k)
		}
	})
}

// rejudge takes another grant: what it allows is no refusal any more, neither of
// records nor of the ranges that the peer's own record declares.
func (p *peerState) rejudge(peer string, guard *peering.Guard) {
	p.do(func() {
		p.refusals.rejudge(peer, guard)
		p.notGranted = slices.DeleteFunc(slices.Clone(p.notGranted), guard.Grants)
	})
}

// shorten keeps what a peer sent from filling logs and status.
func shorten(s string) string {
	const most = 300
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
