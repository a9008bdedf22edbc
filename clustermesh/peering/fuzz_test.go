// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
)

// FuzzCandidate judges what a stranger says of itself when it joins: its
// description and its certificates.
func FuzzCandidate(f *testing.F) {
	now := time.Unix(1_700_000_000, 0)
	ca, err := pki.NewCA("west", now)
	if err != nil {
		f.Fatal(err)
	}
	own := &keyspacev1.Cluster{Name: "east", Id: 1, Mesh: &keyspacev1.MeshParameters{ClusterBits: 8, TunnelProtocol: "vxlan", TunnelPort: 8472, Encryption: "off"}, PodCidrs: []string{"10.1.0.0/16"}, NodeCidrs: []string{"192.0.2.0/24"}}
	for _, c := range []*keyspacev1.Cluster{
		{}, own, {Name: "west", Id: 2, Mesh: &keyspacev1.MeshParameters{ClusterBits: 8, TunnelProtocol: "vxlan", TunnelPort: 8472, Encryption: "off"}, PodCidrs: []string{"10.2.0.0/16", "::/0", "10.2.0.0/99", ""}, Endpoints: []string{"[::1]:4243", ":", "a:b:c"}},
	} {
		b, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, ca.Certificate().Raw)
	}
	f.Add([]byte{0xff}, []byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, description, der []byte) {
		bundle, err := parseBundle([][]byte{der})
		if err == nil && (len(bundle) != 1 || !bundle[0].IsCA) {
			t.Fatalf("a bundle of %v", bundle)
		}
		c := &keyspacev1.Cluster{}
		if proto.Unmarshal(description, c) != nil {
			return
		}
		fs := Preflight(Side{Own: own, CA: nil, Now: now}, Candidate{Cluster: c, Bundle: bundle})
		if !Blocks(fs) && (c.GetName() == own.GetName() || c.GetId() == own.GetId()) {
			t.Fatalf("%v is admitted beside %v", c, own)
		}
	})
}
