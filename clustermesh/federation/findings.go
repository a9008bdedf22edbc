// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
)

const (
	maxSkew      = 5 * time.Second
	acksPatience = 15 * time.Second
)

// findings are what is wrong with a peer by its status. The caller holds mu.
func (p *peerState) findings(s *hawserv1.PeerStatus) []*hawserv1.Finding {
	var out []*hawserv1.Finding
	add := func(check, problem, fix string) {
		out = append(out, &hawserv1.Finding{Check: check, Object: "peer " + s.GetName(), Problem: problem, Fix: fix})
	}
	if off := p.lag.offset(); off.Abs() > maxSkew {
		side := "behind"
		if off > 0 {
			side = "ahead of"
		}
		add("clock-skew", fmt.Sprintf("its clock is %s %s ours", off.Abs().Round(time.Second), side),
			"set both clocks by NTP; the lag shown here has the difference taken out")
	}
	if wait := time.Duration(s.GetUnacknowledgedSeconds() * float64(time.Second)); wait > acksPatience {
		add("acknowledgement", fmt.Sprintf("it has not acknowledged what we sent for %s", wait.Round(time.Second)),
			"see the load and the log of its API server, and whether its etcd takes writes; nothing is lost, it gets the newest of each key")
	}
	age := p.now().Sub(p.freshAt).Round(time.Second)
	switch s.GetData() {
	case dataStale:
		add("stale", fmt.Sprintf("its data is %s old: its backends are used only where no other is left", age), "connect it again, or see hawser mesh set --stale-after")
	case dataExpired:
		add("expired", fmt.Sprintf("its data is %s old and not believed any more: its backends are withdrawn, its workloads count as unknown", age),
			"connect it again: all comes back with what changed meanwhile; or hawser mesh leave "+s.GetName())
	}
	if p.spoilt != "" {
		add("copy", "somebody changed our copy of its keys: "+shorten(p.spoilt),
			"it is copied again by itself, once a minute at the most; find out who else writes below state/"+s.GetName()+"/ in our etcd")
	}
	if p.narrowed != nil {
		add("grant", strings.ReplaceAll(p.narrowed.Error(), "\n", "; "), "give one of the clusters other ranges, and join again")
	}
	for _, r := range p.notGranted {
		if flag, what := peering.GrantFlag(r); flag != "" {
			add("grant", fmt.Sprintf("it declares %s, which is not granted, or not all of it: what is not granted is not used, the rest is", what),
				"if it is right: hawser mesh grant "+s.GetName()+" "+flag)
		}
	}
	var broke []string
	for _, reason := range slices.Sorted(maps.Keys(p.refused)) {
		switch reason {
		case reasonHello, reasonCorrupt, reasonSequence, reasonPosition, reasonProtocol:
			broke = append(broke, fmt.Sprintf("%d %s", p.refused[reason], reason))
		}
	}
	if len(broke) > 0 {
		add("protocol", "streams ended because of what it sent: "+strings.Join(broke, ", "), "compare the versions of both clusters; the newest are under refused records")
	}
	return out
}

// asElsewhere puts into a status what the replica that has the stream says. The
// caller holds mu.
func (p *peerState) asElsewhere(out *hawserv1.PeerStatus, v *keyspacev1.PeerView) {
	out.State, out.Since = stateLost, v.GetSince()
	if v.GetConnected() {
		out.State = stateConnected
	}
	out.LagSeconds, out.LastError = 0, ""
	out.DialledBy, out.Address, out.Replica = v.GetDialledBy(), v.GetAddress(), v.GetReplica()
	out.Data, out.DataSince = v.GetData(), v.GetDataSince()
	out.CertificateExpiresAt = v.GetCertificateExpiresAt()
	out.PositionIncarnation, out.PositionRevision = v.GetPosition().GetIncarnation(), v.GetPosition().GetRevision()
	out.SyncedKinds = slices.Clone(p.syncedElsewhere)
	out.LastSync = "by API server " + v.GetReplica()
}
