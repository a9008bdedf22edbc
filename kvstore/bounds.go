// SPDX-License-Identifier: Apache-2.0

package kvstore

// The most that a list in a record may hold. What Hawser writes is far below;
// they bound what the record of a peer costs its readers, which MaxRecord alone
// does not: lists are compared with other lists.
const (
	// MaxRanges is of each list of ranges of a Cluster record, which may have
	// one for each of thousands of nodes.
	MaxRanges = 4096
	// MaxNodeRanges is of the pod ranges of a node.
	MaxNodeRanges = 256
	// MaxAddresses is of the addresses of a node, and of those of a service.
	MaxAddresses = 64
	// MaxBackends is of the backends in one slice.
	MaxBackends = 100
	// MaxPorts is of the ports of a service, and of one backend.
	MaxPorts = 1024
	// MaxNamedPorts is of the ports of a workload that have names.
	MaxNamedPorts = 256
	// MaxKubeAPIServers is of the prefixes that say where a cluster's Kubernetes API
	// servers are.
	MaxKubeAPIServers = 64
	// MaxLabels is of the labels of an identity.
	MaxLabels = 512
	// MaxTrust is of the CAs that a cluster believes at once.
	MaxTrust = 4
)

// bounded says that a list is too long, or nil.
func bounded(k Key, what string, n, most int) error {
	if n > most {
		return bad(k, ReasonSize, "%d %s, at most %d are allowed", n, what, most)
	}
	return nil
}
