// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"slices"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

// GossipKeySize is the size of a gossip key in bytes (AES-256).
const GossipKeySize = 32

// keySpread is how long members are given to learn of a key before it is used,
// and of its use before the one before it is dropped.
func keySpread(lifetime time.Duration) time.Duration {
	const most = 10 * time.Minute
	return min(lifetime/4, most)
}

// NextKeys is the next step of a key's life, and whether there is one: a first
// key; a new one, known and not used, when the one in use is as old as lifetime
// (0: never); its use; the end of the one before. Each step waits until all
// members must have taken the last one, so that they understand each other all
// the time. random fills a new secret.
func NextKeys(now time.Time, lifetime time.Duration, old *keyspacev1.GossipKeys, random func([]byte)) (*keyspacev1.GossipKeys, bool) {
	keys := slices.Clone(old.GetKeys())
	fresh := func(primarySince int64) *keyspacev1.GossipKey {
		k := &keyspacev1.GossipKey{Secret: make([]byte, GossipKeySize), CreatedAt: now.UnixNano(), PrimarySince: primarySince}
		random(k.Secret)
		return k
	}
	since := func(ns int64) time.Duration { return now.Sub(time.Unix(0, ns)) }
	spread := keySpread(lifetime)
	switch {
	case len(keys) == 0:
		keys = append(keys, fresh(now.UnixNano()))
	case lifetime <= 0:
		return old, false
	case len(keys) == 1 && since(keys[0].GetPrimarySince()) >= lifetime:
		keys = append(keys, fresh(0))
	case len(keys) > 1 && keys[1].GetPrimarySince() == 0 && since(keys[1].GetCreatedAt()) >= spread:
		next := &keyspacev1.GossipKey{Secret: keys[1].GetSecret(), CreatedAt: keys[1].GetCreatedAt(), PrimarySince: now.UnixNano()}
		keys = []*keyspacev1.GossipKey{next, keys[0]}
	case len(keys) > 1 && keys[1].GetPrimarySince() != 0 && since(keys[0].GetPrimarySince()) >= spread:
		keys = keys[:1]
	default:
		return old, false
	}
	return &keyspacev1.GossipKeys{Keys: keys}, true
}

// SharedKeys is what members are told of keys.
func SharedKeys(k *keyspacev1.GossipKeys) *keyspacev1.Gossip {
	out := &keyspacev1.Gossip{}
	for _, key := range k.GetKeys() {
		out.Keys = append(out.Keys, key.GetSecret())
	}
	return out
}
