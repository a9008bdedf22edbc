// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"cmp"
	"slices"
	"strings"
)

// Kind is where a claim comes from.
type Kind uint8

// Kinds, by precedence within one cluster.
const (
	KindEndpoint Kind = iota + 1 // an endpoint of this node
	KindNode
	KindIP
	KindVTEP
	KindHost     // an address of this node that its record does not have
	KindRange    // a cluster's pod or service range: what nobody has in it is nowhere
	KindCIDR     // a prefix outside the mesh that policies use
	KindReserved // no claim: the answer for what nobody claims
	KindExternal // an Entry of KindVTEP that an operator declared
)

func (k Kind) String() string {
	switch k {
	case KindEndpoint:
		return "endpoint"
	case KindNode:
		return "node"
	case KindIP:
		return "ip"
	case KindVTEP:
		return "vtep"
	case KindHost:
		return "host"
	case KindExternal:
		return "external"
	case KindRange:
		return "range"
	case KindCIDR:
		return "cidr"
	default:
		return "reserved"
	}
}

// source tells the claims to one key apart.
type source struct {
	Kind    Kind
	Cluster string
	Name    string // of the node, for KindNode
}

// compare orders sources, the one to believe first: endpoints of this node,
// then the own cluster, then the peers by name; within a cluster by kind.
func (s source) compare(o source, own string) int {
	return cmp.Or(
		cmp.Compare(s.distance(own), o.distance(own)),
		strings.Compare(s.Cluster, o.Cluster),
		cmp.Compare(s.Kind, o.Kind),
		strings.Compare(s.Name, o.Name))
}

func (s source) distance(own string) int {
	switch {
	case s.Kind == KindEndpoint:
		return 0
	case s.Kind == KindCIDR:
		return 3 // what the mesh has is not outside
	case s.Cluster == own:
		return 1
	default:
		return 2
	}
}

// claim is a value with its source.
type claim[V any] struct {
	source source
	value  V
}

// claims holds all claims to each key, the best first, so that the next one
// shows when the best is withdrawn.
type claims[K comparable, V any] struct {
	order func(a, b source) int
	m     map[K][]claim[V]
}

func newClaims[K comparable, V any](order func(a, b source) int) claims[K, V] {
	return claims[K, V]{order: order, m: map[K][]claim[V]{}}
}

func (c *claims[K, V]) find(k K, s source) (int, bool) {
	return slices.BinarySearchFunc(c.m[k], s, func(x claim[V], s source) int { return c.order(x.source, s) })
}

func (c *claims[K, V]) set(k K, s source, v V) {
	i, ok := c.find(k, s)
	if ok {
		c.m[k][i].value = v
		return
	}
	c.m[k] = slices.Insert(c.m[k], i, claim[V]{s, v})
}

func (c *claims[K, V]) remove(k K, s source) {
	i, ok := c.find(k, s)
	if !ok {
		return
	}
	if c.m[k] = slices.Delete(c.m[k], i, i+1); len(c.m[k]) == 0 {
		delete(c.m, k)
	}
}

// all are the claims to k, the best first. The caller must not keep them.
func (c *claims[K, V]) all(k K) []claim[V] { return c.m[k] }
