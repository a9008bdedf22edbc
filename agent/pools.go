// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

// pools are the addresses that this node has for its pods.
func (a *Agent) pools() (out []*hawserv1.AddressPool) {
	for _, p := range a.endpoints.pool.all() {
		out = append(out, &hawserv1.AddressPool{Prefix: p.Prefix().String(), Used: uint64(p.Used()), Free: p.Free()})
	}
	return out
}

// fullPools are the pools that have nothing left, as problems.
func fullPools(pools []*hawserv1.AddressPool) (out []*hawserv1.Problem) {
	for _, p := range pools {
		if p.GetFree() == 0 {
			out = append(out, &hawserv1.Problem{
				Object: "pod addresses " + p.GetPrefix(), Problem: fmt.Sprintf("all %d are in use: no further pod gets one", p.GetUsed()),
				Fix: "delete pods of this node, or give it a larger --pod-cidr (the cluster's --pod-cidr-size, and hawser node forget)",
			})
		}
	}
	return out
}
