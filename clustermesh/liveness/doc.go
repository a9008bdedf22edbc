// SPDX-License-Identifier: Apache-2.0

// Package liveness decides who is alive. It never believes one witness: a node
// is dead when neither its agent (by gossip inside its cluster, by the stream
// between clusters) nor its datapath (by probes through the tunnel) answers.
//
// The decisions are pure and take the time as an argument: start with Prober
// (what this node's probes say of a path), Table (which nodes this node chooses
// backends on) and Folder (what a cluster says of its own nodes). The transports
// beside them are Probes (UDP in the tunnel) and Gossip (memberlist).
//
// Out of scope: who answers probes (bpf/lib/probe.h), what a withdrawn backend
// means (package loadbalancer), and where records are kept.
package liveness

import (
	"strings"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

// NodeID names a node of the mesh.
type NodeID struct{ Cluster, Node string }

func (n NodeID) String() string { return n.Cluster + "/" + n.Node }

// Compare orders by cluster, then node.
func (n NodeID) Compare(o NodeID) int {
	switch {
	case n == o:
		return 0
	case n.Cluster < o.Cluster, n.Cluster == o.Cluster && n.Node < o.Node:
		return -1
	}
	return 1
}

// Capability is what a Node record announces when the node answers probes and
// takes part in gossip. Nodes without it are left in peace: of them nothing is
// known, and nothing is withdrawn.
const Capability = "liveness"

// Witness is what a witness says.
type Witness uint8

// What witnesses say.
const (
	Unknown Witness = iota // nothing
	Up
	Down
)

func (w Witness) String() string { return [...]string{"unknown", "up", "down"}[min(w, Down)] }

// ParseWitness reads what String wrote; anything else is Unknown.
func ParseWitness(s string) Witness {
	for _, w := range []Witness{Up, Down} {
		if w.String() == s {
			return w
		}
	}
	return Unknown
}

// StateName is a health state in words: "agent down"; empty when it is unknown.
func StateName(s keyspacev1.NodeHealth_State) string {
	if s == keyspacev1.NodeHealth_STATE_UNKNOWN {
		return ""
	}
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(s.String(), "STATE_")), "_", " ")
}
