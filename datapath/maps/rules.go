// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"github.com/hawser-mesh/hawser/datapath"
)

// Rules is a rule set's word in the rule_sets map, taken apart. The layout is
// drawn in bpf/lib/policy.h.
type Rules struct {
	Epoch         uint32
	Valid         bool
	DenyIngress   bool
	DenyEgress    bool
	IngressLevels uint8
	EgressLevels  uint8
}

const (
	rulesFlagsShift   = 32
	rulesIngressShift = 40
	rulesEgressShift  = 48

	rulesValid       = 1 << 0
	rulesDenyIngress = 1 << 1
	rulesDenyEgress  = 1 << 2
)

// Word packs the word.
func (r Rules) Word() uint64 {
	var flags uint64
	if r.Valid {
		flags |= rulesValid
	}
	if r.DenyIngress {
		flags |= rulesDenyIngress
	}
	if r.DenyEgress {
		flags |= rulesDenyEgress
	}
	return uint64(r.Epoch) | flags<<rulesFlagsShift |
		uint64(r.IngressLevels)<<rulesIngressShift | uint64(r.EgressLevels)<<rulesEgressShift
}

// RulesFrom unpacks a word.
func RulesFrom(w uint64) Rules {
	flags := w >> rulesFlagsShift
	return Rules{
		Epoch: uint32(w), Valid: flags&rulesValid != 0,
		DenyIngress: flags&rulesDenyIngress != 0, DenyEgress: flags&rulesDenyEgress != 0,
		IngressLevels: uint8(w >> rulesIngressShift), EgressLevels: uint8(w >> rulesEgressShift),
	}
}

// EncodePolicyKey makes the key of an entry of a rule set.
func EncodePolicyKey(set uint32, k datapath.PolicyKey) PolicyKey {
	return PolicyKey{
		RuleSet: set, Identity: uint32(k.Identity), Port: PortFrom(k.Port),
		Protocol: k.Protocol, Direction: uint8(k.Direction),
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

// Level is the bit of the probe that finds an entry with this key.
func (k PolicyKey) Level() uint8 {
	level := uint8(1)
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

// AddLevel adds the level of a key to the masks.
func (r *Rules) AddLevel(k PolicyKey) {
	if datapath.Direction(k.Direction) == datapath.Egress {
		r.EgressLevels |= k.Level()
		return
	}
	r.IngressLevels |= k.Level()
}
