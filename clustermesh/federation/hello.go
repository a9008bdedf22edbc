// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"fmt"
	"slices"
	"time"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
)

// The range of protocols that this version speaks. Each is understood by the
// minor version before it and after it.
const (
	protocolMin = 1
	protocolMax = 1
)

// capExpireAfter: the hello says for how long the sender believes the
// receiver's records without hearing from it.
const capExpireAfter = "expire-after"

// capExplain: the sender answers questions about its policies.
const capExplain = "explain"

// capabilities are what this version can do beyond its protocol. A change of
// meaning is in force on a stream only when both sides announce it.
func capabilities() []string { return []string{capExpireAfter, capExplain} }

const (
	maxCapabilities = 64
	maxCapability   = 64 // bytes
)

// agreement is what two hellos settle for a stream.
type agreement struct {
	protocol     uint32   // the newest that both speak
	capabilities []string // that both announce, sorted
	version      string   // of the peer
	incarnation  string   // of its store
	endpoints    []string // where it says that it can be dialled
	// believedFor is how long the peer believes our records, 0 for ever; nil:
	// it does not say.
	believedFor *time.Duration
}

func (a agreement) has(capability string) bool { return slices.Contains(a.capabilities, capability) }

// helloOf is our hello to a peer. own is what our cluster says of itself.
func helloOf(own *keyspacev1.Cluster, incarnation string, expireAfter time.Duration) *federationv1.Hello {
	return &federationv1.Hello{
		ProtocolMin: protocolMin, ProtocolMax: protocolMax, Cluster: own.GetName(), ClusterId: own.GetId(),
		Incarnation: incarnation, Version: own.GetVersion(), Description: own, Capabilities: capabilities(),
		ExpireAfter: int64(max(0, expireAfter)),
	}
}

// negotiate settles what a stream speaks by the hello of a peer, or says why it
// cannot be: the error is a *violation.
func negotiate(peer *keyspacev1.Peer, ourVersion string, h *federationv1.Hello) (agreement, error) {
	refuse := func(format string, args ...any) (agreement, error) {
		return agreement{}, &violation{reason: reasonHello, detail: fmt.Sprintf(format, args...)}
	}
	name, version := peer.GetName(), shorten(h.GetVersion())
	switch {
	case h == nil:
		return refuse("%s did not begin with a hello", name)
	case h.GetCluster() != name || h.GetClusterId() != peer.GetClusterId():
		return refuse("%s calls itself %q with cluster id %d; it joined as %q with %d: if it was made anew, leave it and join again",
			name, shorten(h.GetCluster()), h.GetClusterId(), name, peer.GetClusterId())
	case h.GetProtocolMin() > h.GetProtocolMax():
		return refuse("%s (version %s) says that it speaks protocol %d to %d", name, version, h.GetProtocolMin(), h.GetProtocolMax())
	case h.GetProtocolMin() > protocolMax || h.GetProtocolMax() < protocolMin:
		return refuse("%s (version %s) speaks protocol %d to %d, we (version %s) %d to %d: upgrade the older cluster",
			name, version, h.GetProtocolMin(), h.GetProtocolMax(), ourVersion, protocolMin, protocolMax)
	case !peering.CompatibleVersions(ourVersion, h.GetVersion()):
		return refuse("%s runs version %s, we %s: peers may differ by one minor version; upgrade the older cluster", name, version, ourVersion)
	case h.GetIncarnation() == "":
		return refuse("%s does not name the incarnation of its store", name)
	case len(h.GetCapabilities()) > maxCapabilities || slices.ContainsFunc(h.GetCapabilities(), func(c string) bool { return len(c) > maxCapability }):
		return refuse("%s announces more than %d capabilities, or one of more than %d bytes", name, maxCapabilities, maxCapability)
	}
	a := agreement{protocol: min(protocolMax, h.GetProtocolMax()), version: version, incarnation: h.GetIncarnation(),
		endpoints: h.GetDescription().GetEndpoints()}
	for _, c := range capabilities() {
		if slices.Contains(h.GetCapabilities(), c) {
			a.capabilities = append(a.capabilities, c)
		}
	}
	slices.Sort(a.capabilities)
	if a.has(capExpireAfter) {
		d := time.Duration(h.GetExpireAfter())
		a.believedFor = &d
	}
	return a, nil
}
