// SPDX-License-Identifier: Apache-2.0

// Package stages names the parts of a record's way from its origin into the
// kernels of other clusters' nodes. Federation observes those of the API servers,
// the agent those of the node. Out of scope: how they are counted
// (observe/metrics).
package stages

import (
	"time"

	"github.com/hawser-mesh/hawser/observe/metrics"
)

// Stage is one part of the way.
type Stage string

// Stages, in order. What begins with the record's own time or ends in another
// cluster compares the clocks of two hosts: the difference between clusters is
// taken out, hosts of one cluster are believed to agree. All others are by the
// monotonic clock of one process.
const (
	// Etcd: written, by the record's own time, until the origin's API server
	// was told by its watch.
	Etcd Stage = "etcd"
	// Queue: until its batch was handed to the stream.
	Queue Stage = "queue"
	// Stream: from the watch of the origin's API server until the batch was
	// received. It contains Queue.
	Stream Stage = "stream"
	// Apply: received until the own store had it.
	Apply Stage = "apply"
	// Arrive: written, by the record's own time, until a node's watch told it.
	Arrive Stage = "arrive"
	// Table: until the node's tables had it.
	Table Stage = "table"
	// Map: until the node's kernel had it.
	Map Stage = "map"
	// Total: written until the node's kernel had it.
	Total Stage = "total"
)

// Name is the metric's.
const Name = "hawser_propagation_seconds"

// TooOld is the age from which a record that a watch tells is not news but a
// copy of what was there, as when a peer is new. Stages that begin with the
// record's own time leave it out.
const TooOld = 10 * time.Minute

// APIServerDefs documents the metric of an API server.
func APIServerDefs() []metrics.Def {
	return defs("How changes of clusters come across, by stage: etcd and queue of what goes to target_cluster, stream and apply of what comes from it; one of each batch, not of full copies.")
}

// NodeDefs documents the metric of a node.
func NodeDefs() []metrics.Def {
	return defs("How changes of target_cluster come to this node, by stage: arrive, table, map, and total; sampled.")
}

func defs(help string) []metrics.Def {
	return []metrics.Def{{Name: Name, Help: help, Kind: metrics.Histogram, Labels: []string{"target_cluster", "stage"}}}
}
