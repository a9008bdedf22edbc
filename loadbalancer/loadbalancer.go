// SPDX-License-Identifier: Apache-2.0

// Package loadbalancer is the logic of services: what a Service manifest means
// (ParseServices), which backends a node offers (LocalSlices), which backends
// of all clusters stand behind each address of ours (Desired), and how
// addresses and numbers are chosen (NextVIP, NextServiceID).
//
// It neither stores nor watches records, nor selects a backend for a
// connection: the API server, the agent and the datapath do.
package loadbalancer

import (
	"net/netip"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

// Object is one Service as it was applied.
type Object struct {
	// Service has neither number nor VIPs yet.
	Service *keyspacev1.Service
	// ClusterIPs are the addresses that the manifest asks for, at most one of each
	// family; usually none.
	ClusterIPs []netip.Addr
	// DualStack refuses a cluster that has not both families.
	DualStack bool
	// Source is the document: ParseServices of it gives this object again.
	Source string
}

// ID is namespace/name.
func (o Object) ID() string { return o.Service.GetNamespace() + "/" + o.Service.GetName() }
