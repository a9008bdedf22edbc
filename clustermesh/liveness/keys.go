// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"slices"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

// GossipKeySize is the size of a gossip key in bytes (AES-256).
const GossipKeySize = 32

// hurriedSpread is keySpread while keys are replaced because somebody who is no
// member any more knows them: seconds, as long as a member takes to read a key.
const hurriedSpread = 10 * time.Second

// keySpread is how long members are given to learn of a key before it is used,
// and of its use before the one before it is dropped.
func keySpread(lifetime time.Duration, hurried bool) time.Duration {
	most := 10 * time.Minute
	if hurried {
		most = hurriedSpread
	}
	if lifetime <= 0 {
		return most
	}
	return min(lifetime/4, most)
}

// NextKeys is the next step of a key's life, and whether there is one: a first
// key; a new one, known and not used, when the one in use is as old as lifetime
// (0: never) or was made before what has to be replaced; its use; the end of the
// one before. Each step waits until all members must have taken the last one, so
// that they understand each other all the time. random fills a new secret.
func NextKeys(now time.Time, lifetime time.Duration, old *keyspacev1.GossipKeys, random func([]byte)) (*keyspacev1.GossipKeys, bool) {
	keys := slices.Clone(old.GetKeys())
	fresh := func(primarySince int64) *keyspacev1.GossipKey {
		k := &keyspacev1.GossipKey{Secret: make([]byte, GossipKeySize), CreatedAt: now.UnixNano(), PrimarySince: primarySince}
		random(k.Secret)
		return k
	}
	since := func(ns int64) time.Duration { return now.Sub(time.Unix(0, ns)) }
	known := func(k *keyspacev1.GossipKey) bool { return k.GetCreatedAt() < old.GetReplaceBefore() }
	spread := keySpread(lifetime, slices.ContainsFunc(keys, known))
	switch {
	case len(keys) == 0:
		keys = append(keys, fresh(now.UnixNano()))
	case len(keys) == 1 && (lifetime > 0 && since(keys[0].GetPrimarySince()) >= lifetime || known(keys[0])):
		keys = append(keys, fresh(0))
	case len(keys) > 1 && keys[1].GetPrimarySince() == 0 && known(keys[1]):
		keys = []*keyspacev1.GossipKey{keys[0], fresh(0)} // it was never used
	case len(keys) > 1 && keys[1].GetPrimarySince() == 0 && since(keys[1].GetCreatedAt()) >= spread:
		next := &keyspacev1.GossipKey{Secret: keys[1].GetSecret(), CreatedAt: keys[1].GetCreatedAt(), PrimarySince: now.UnixNano()}
		keys = []*keyspacev1.GossipKey{next, keys[0]}
	case len(keys) > 1 && keys[1].GetPrimarySince() != 0 && since(keys[0].GetPrimarySince()) >= spread:
		keys = keys[:1]
	default:
		return old, false
	}
	return &keyspacev1.GossipKeys{Keys: keys, ReplaceBefore: old.GetReplaceBefore()}, true
}

// SharedKeys is what members are told of keys.
func SharedKeys(k *keyspacev1.GossipKeys) *keyspacev1.Gossip {
	out := &keyspacev1.Gossip{}
	for _, key := range k.GetKeys() {
		out.Keys = append(out.Keys, key.GetSecret())
	}
	return out
}
