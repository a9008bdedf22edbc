// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
)

// Rules is a rule set's word in the rule_sets map, taken apart. The layout is
// drawn in bpf/lib/policy.h.
type Rules struct {
	Epoch       uint32
	Valid       bool
	DenyIngress bool
	DenyEgress  bool
	// IngressBlocks and EgressBlocks: there are entries for ipBlocks.
	IngressBlocks bool
	EgressBlocks  bool
	// Audit: what would be denied is reported and passes.
	Audit         bool
	IngressLevels uint8
	EgressLevels  uint8
	// Ranges has bit n when there are ranges of 4<<2n ports.
	Ranges uint8
}

const (
	rulesFlagsShift   = 32
	rulesIngressShift = 40
	rulesEgressShift  = 48
	rulesRangesShift  = 56

	rulesValid       = 1 << 0
	rulesDenyIngress = 1 << 1
	rulesDenyEgress  = 1 << 2

	rulesIngressBlocks = 1 << 3
	rulesEgressBlocks  = 1 << 4
	rulesAudit         = 1 << 5

	// wildShift is where, above the direction, a key has its port's wild bits.
	wildShift = 1
)

// Word packs the word.
func (r Rules) Word() uint64 {
	var flags uint64
	for bit, set := range map[uint64]bool{
		rulesValid: r.Valid, rulesDenyIngress: r.DenyIngress, rulesDenyEgress: r.DenyEgress,
		rulesIngressBlocks: r.IngressBlocks, rulesEgressBlocks: r.EgressBlocks, rulesAudit: r.Audit,
	} {
		if set {
			flags |= bit
		}
	}
	return uint64(r.Epoch) | flags<<rulesFlagsShift | uint64(r.IngressLevels)<<rulesIngressShift |
		uint64(r.EgressLevels)<<rulesEgressShift | uint64(r.Ranges)<<rulesRangesShift
}

// RulesFrom unpacks a word.
func RulesFrom(w uint64) Rules {
	flags := w >> rulesFlagsShift
	return Rules{
		Epoch: uint32(w), Valid: flags&rulesValid != 0,
		DenyIngress: flags&rulesDenyIngress != 0, DenyEgress: flags&rulesDenyEgress != 0,
		IngressBlocks: flags&rulesIngressBlocks != 0, EgressBlocks: flags&rulesEgressBlocks != 0,
		Audit:         flags&rulesAudit != 0,
		Ranges:        uint8(w >> rulesRangesShift),
		IngressLevels: uint8(w >> rulesIngressShift), EgressLevels: uint8(w >> rulesEgressShift),
	}
}

// EncodePolicyKey makes the key of an entry of a rule set.
func EncodePolicyKey(set uint32, k datapath.PolicyKey) PolicyKey {
	return PolicyKey{
		RuleSet: set, Identity: uint32(k.Identity), Port: PortFrom(k.Port),
		Protocol: k.Protocol, Direction: uint8(k.Direction) | k.PortWild<<wildShift,
	}
}

// policyDefault is POLICY_DEFAULT.
const policyDefault = 255

// DefaultKey is the key of the entry that counts what the default of a rule set
// denies. Such a default has one, and the programs never judge by it.
func DefaultKey(set uint32, d datapath.Direction) PolicyKey {
	return PolicyKey{RuleSet: set, Protocol: policyDefault, Direction: uint8(d)}
}

// Row is the key as rows have it; the rule set is left out.
func (k PolicyKey) Row() datapath.PolicyKey {
	return datapath.PolicyKey{
		Direction: datapath.Direction(k.Direction & 1), Identity: identity.Number(k.Identity),
		Protocol: k.Protocol, Port: k.Port.Uint16(), PortWild: k.wild(),
	}
}

// EncodePolicyEntry makes the value of an entry.
func EncodePolicyEntry(e datapath.PolicyEntry) PolicyEntry {
	v := PolicyEntry{Origin: e.Origin}
	if e.Deny {
		v.Deny = 1
	}
	return v
}

// wild is how many low bits of the key's port match anything.
func (k PolicyKey) wild() uint8 { return k.Direction >> wildShift }

// Level is the bit of the probe that finds an entry with this key. Ranges have
// none.
func (k PolicyKey) Level() uint8 {
	level := uint8(1)
	if k.wild() != 0 {
		return 0
	}
	if k.Identity == 0 {
		level <<= 3
	}
	switch {
	case k.Protocol == 0:
		level <<= 2
	case k.Port == (Port{}):
		level <<= 1
	}
	return level
}

// AddLevel makes the programs look where the entry with this key is.
func (r *Rules) AddLevel(k PolicyKey) {
	if wild := k.wild(); wild != 0 {
		r.Ranges |= 1 << (wild/2 - 1)
	}
	block := identity.Number(k.Identity).IsBlock()
	if datapath.Direction(k.Direction&1) == datapath.Egress {
		r.EgressLevels |= k.Level()
		r.EgressBlocks = r.EgressBlocks || block
		return
	}
	r.IngressLevels |= k.Level()
	r.IngressBlocks = r.IngressBlocks || block
}

// Widen makes the programs look where r or o have entries.
func (r *Rules) Widen(o Rules) {
	r.IngressLevels |= o.IngressLevels
	r.EgressLevels |= o.EgressLevels
	r.IngressBlocks = r.IngressBlocks || o.IngressBlocks
	r.EgressBlocks = r.EgressBlocks || o.EgressBlocks
	r.Ranges |= o.Ranges
}
