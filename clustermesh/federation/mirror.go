// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

// valueHash tells values apart; 16 bytes of SHA-256.
type valueHash [16]byte

func hashOf(v []byte) valueHash {
	sum := sha256.Sum256(v)
	return valueHash(sum[:16])
}

// entry is what is remembered of one mirrored key.
type entry struct {
	kind   kvstore.Kind
	hash   valueHash
	weight uint64
}

// mirror remembers what stands below state/<peer>/ in our store: what need not
// be written again, what a snapshot did not mention, and how much of the grant is
// used. One importer owns it.
type mirror struct {
	entries map[string]entry // by key below state/<peer>/
	counts  map[kvstore.Kind]uint64
	weights map[kvstore.Kind]uint64
	// seen is not nil during a snapshot: the keys that it mentioned. Limits
	// count these alone then, as the others are about to go.
	seen       map[string]struct{}
	seenWeight map[kvstore.Kind]uint64
	sum        valueHash // of all entries, in any order
}

// content tells mirrors apart: those of the same keys and values are equal.
func (m *mirror) content() []byte { return bytes.Clone(m.sum[:]) }

// toggle adds an entry to the sum, or takes it out.
func (m *mirror) toggle(rel string, e entry) {
	h := hashOf(append([]byte(rel+"\x00"), e.hash[:]...))
	for i := range m.sum {
		m.sum[i] ^= h[i]
	}
}

// beginSnapshot forgets what an earlier, unfinished one mentioned.
func (m *mirror) beginSnapshot() {
	m.seen, m.seenWeight = map[string]struct{}{}, map[kvstore.Kind]uint64{}
}

// see marks a key as mentioned by the snapshot, if there is one.
func (m *mirror) see(j judged) {
	if _, twice := m.seen[j.rel]; m.seen != nil && !twice {
		m.seen[j.rel] = struct{}{}
		m.seenWeight[j.kind] += j.weight
	}
}

// unseen ends the snapshot and lists what it did not mention.
func (m *mirror) unseen() []judged {
	var out []judged
	for rel, e := range m.entries {
		if _, ok := m.seen[rel]; !ok {
			out = append(out, judged{rel: rel, kind: e.kind, deleted: true})
		}
	}
	m.seen, m.seenWeight = nil, nil
	return out
}

// loadMirror reads the mirror from the store, at a revision.
func loadMirror(ctx context.Context, kv kvstore.Client, peer string) (*mirror, int64, error) {
	m := &mirror{entries: map[string]entry{}, counts: map[kvstore.Kind]uint64{}, weights: map[kvstore.Kind]uint64{}}
	prefix := kvstore.Prefix(kvstore.State, peer)
	after, rev := "", int64(0)
	for {
		page, err := kv.List(ctx, prefix, after, 1000, rev)
		if err != nil {
			return nil, 0, fmt.Errorf("read mirror of %s: %w", peer, err)
		}
		rev = page.Revision
		for _, kv := range page.KVs {
			after = kv.Key
			k, err := kvstore.ParseKey(kv.Key)
			if err != nil {
				k.Kind = "" // not ours; the next snapshot sweeps it
			}
			m.set(kv.Key[len(prefix):], entry{k.Kind, hashOf(kv.Value), weightOf(k, kv.Value)})
		}
		if !page.More {
			return m, rev, nil
		}
	}
}

// weightOf is the number of backends of a slice, and 1 for other records.
func weightOf(k kvstore.Key, value []byte) uint64 {
	if k.Kind != kvstore.KindSlice {
		return 1
	}
	rec, err := kvstore.Decode(k, value)
	s, ok := rec.(*keyspacev1.BackendSlice)
	if err != nil || !ok {
		return 1
	}
	return max(1, uint64(len(s.GetBackends())))
}

// judgeValue decodes a value and asks the guard; a kind that this version does
// not know is kept as it is.
func judgeValue(k kvstore.Key, guard *peering.Guard, j *judged) *kvstore.BadRecord {
	rec, err := kvstore.Decode(k, j.value)
	if err == nil {
		if within, surplus := guard.Within(k, rec); within != rec {
			rec, j.surplus, j.whole, j.value = within, surplus, j.value, encode(within)
		}
		err = guard.Check(k, rec)
		if s, ok := rec.(*keyspacev1.BackendSlice); ok {
			j.weight = max(1, uint64(len(s.GetBackends())))
		}
	}
	var bad *kvstore.BadRecord
	switch {
	case err == nil || errors.Is(err, kvstore.ErrUnknownKind):
		return nil
	case errors.As(err, &bad):
		return bad
	}
	return &kvstore.BadRecord{Key: k.String(), Reason: kvstore.ReasonDecode, Detail: err.Error()}
}

func (m *mirror) set(rel string, e entry) {
	m.drop(rel)
	m.entries[rel] = e
	m.toggle(rel, e)
	m.counts[e.kind]++
	m.weights[e.kind] += e.weight
}

func (m *mirror) drop(rel string) {
	if e, ok := m.entries[rel]; ok {
		delete(m.entries, rel)
		m.toggle(rel, e)
		m.counts[e.kind]--
		m.weights[e.kind] -= e.weight
	}
}

// fits reports whether a record of this weight, in place of the present one,
// stays within the limit.
func (m *mirror) fits(j judged, limit uint64) bool {
	used, old := m.weights[j.kind], uint64(0)
	if e, ok := m.entries[j.rel]; ok {
		old = e.weight
	}
	if m.seen != nil {
		used, old = m.seenWeight[j.kind], 0
	}
	return used-old+j.weight <= limit
}

// kinds is the number of keys of each kind, for status.
func (m *mirror) kinds() map[string]uint64 {
	out := make(map[string]uint64, len(m.counts))
	for k, n := range m.counts {
		if n > 0 {
			out[string(k)] = n
		}
	}
	return out
}
