// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/datapath"
)

// taking are the backends of a port that take new connections: those of the best
// rank that there is one of.
func taking(all []BackendView, p *keyspacev1.ServicePort) []datapath.Backend {
	best, out := never, []datapath.Backend(nil)
	for _, b := range all {
		r := b.rank()
		if r > best || r == never || b.PortName != p.GetName() || b.Protocol != p.GetProtocol() {
			continue
		}
		if r < best {
			best, out = r, nil
		}
		out = append(out, b.row())
	}
	return out
}

// keeping are the backends of a port that keep the flows that they have, and are
// not among those that are taken of the same ones, in the same order.
func keeping(all []BackendView, p *keyspacev1.ServicePort, taken []datapath.Backend) (out []datapath.Backend) {
	for _, b := range all {
		switch {
		case b.PortName != p.GetName() || b.Protocol != p.GetProtocol():
		case len(taken) > 0 && taken[0] == b.row():
			taken = taken[1:]
		case b.keeps():
			out = append(out, b.row())
		}
	}
	return out
}

func (b BackendView) row() datapath.Backend {
	return datapath.Backend{Addr: b.Addr, Port: b.Port, ClusterID: b.ClusterID}
}

// keeps reports whether a backend that takes no new flows keeps those it has.
// Those of a node that is gone are better told at once: their next packet goes
// to another backend, which resets them. Those of one that is in maintenance
// live on: its node and its cluster are well.
func (b BackendView) keeps() bool {
	if b.State == keyspacev1.Backend_STATE_MAINTENANCE {
		return b.Standing != Gone && b.Age != Expired
	}
	return b.Standing != Gone && b.rank() != never
}

// Ranks of backends, the better the lower: the sum of what speaks against one. A
// service is never left without backends because of what is only believed of
// nodes: those that nobody reaches are the last, not gone.
const (
	ending = 1 << iota // terminating
	old                // of a cluster whose records are stale
	passed             // on a node that is not reached
	never              // quarantined, in maintenance or expired: takes none
)

// Rank compares a backend with others, the better the lower; takes is false for
// one that takes no new connections in any case.
func (b BackendView) Rank() (rank int, takes bool) {
	r := b.rank()
	return r, r != never
}

// rank is the one place where backends are compared.
func (b BackendView) rank() (r int) {
	switch b.State {
	case keyspacev1.Backend_STATE_ACTIVE:
	case keyspacev1.Backend_STATE_TERMINATING:
		r = ending
	default:
		return never
	}
	switch b.Age {
	case Expired:
		return never
	case Stale:
		r += old
	}
	if b.Standing != Reached {
		r += passed
	}
	return r
}
