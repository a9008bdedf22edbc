// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
)

func caOf(t *testing.T, cluster string) *x509.Certificate {
	t.Helper()
	ca, err := pki.NewCA(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca.Certificate()
}

func declaredWest(ca ...*x509.Certificate) *Declaration {
	return &Declaration{Name: "west", ID: 2, CAs: ca, Endpoints: []string{"192.0.2.1:4243"},
		PodCIDRs: []string{"10.2.0.0/16"}, NodeCIDRs: []string{"192.168.2.0/24"}, ServiceCIDRs: []string{"172.18.0.0/16"}}
}

func applied(t *testing.T, d *Declaration, old *keyspacev1.Peer) *keyspacev1.Peer {
	t.Helper()
	rec, err := d.apply(west(), old, time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// rotated is the declared peer after it replaced its CA, and an operator changed
// its ages and its grant.
func rotated(t *testing.T, before, after *x509.Certificate) *keyspacev1.Peer {
	t.Helper()
	p := applied(t, declaredWest(before), nil)
	retire(p, [][]byte{before.Raw, after.Raw})
	p.TrustBundle = [][]byte{before.Raw, after.Raw}
	retire(p, [][]byte{after.Raw})
	p.TrustBundle = [][]byte{after.Raw}
	p.StaleAfter, p.ExpireAfter, p.Grant.MaxServices = proto.Int64(7), proto.Int64(9), 3
	p.Grant.NodeCidrs = append(p.Grant.NodeCidrs, "192.168.12.0/24")
	return p
}

// What did not change in the declaration stays as it was made since.
func TestAChangedDeclarationAppliesWhatChanged(t *testing.T) {
	before, after := caOf(t, "west"), caOf(t, "west")
	for what, tc := range map[string]struct {
		edit func(*Declaration)
		want func(*keyspacev1.Peer)
	}{
		"nothing": {func(*Declaration) {}, func(*keyspacev1.Peer) {}},
		"pods": {func(d *Declaration) { d.PodCIDRs = append(d.PodCIDRs, "10.77.0.0/16") },
			func(p *keyspacev1.Peer) { p.Grant.PodCidrs = []string{"10.2.0.0/16", "10.77.0.0/16"} }},
		"nodes": {func(d *Declaration) { d.NodeCIDRs = []string{"192.168.3.0/24"} },
			func(p *keyspacev1.Peer) { p.Grant.NodeCidrs = []string{"192.168.3.0/24"} }},
		"services": {func(d *Declaration) { d.ServiceCIDRs = nil },
			func(p *keyspacev1.Peer) { p.Grant.ServiceCidrs, p.Grant.ServiceCidrsPinned = nil, false }},
		"namespaces": {func(d *Declaration) { d.Namespaces = []string{"demo"} }, func(p *keyspacev1.Peer) { p.Grant.Namespaces = []string{"demo"} }},
		"endpoints":  {func(d *Declaration) { d.Endpoints = []string{"192.0.2.2:4243"} }, func(p *keyspacev1.Peer) { p.Endpoints = []string{"192.0.2.2:4243"} }},
		"id": {func(d *Declaration) { d.ID = 3 },
			func(p *keyspacev1.Peer) { p.ClusterId, p.Grant.IdentityMin, p.Grant.IdentityMax = 3, 3<<16, 4<<16-1 }},
		"CA": {func(d *Declaration) { d.CAs = []*x509.Certificate{after} }, func(*keyspacev1.Peer) {}},
	} {
		old := rotated(t, before, after)
		d := declaredWest(before)
		tc.edit(d)
		got, want := applied(t, d, old), proto.CloneOf(old)
		tc.want(want)
		want.Declared, want.Declaration = d.hash(), d.record()
		if !proto.Equal(got, want) {
			t.Errorf("%s changed:\n%v\nwant\n%v", what, got, want)
		}
		if proto.Equal(got, old) != (what == "nothing") {
			t.Errorf("%s: the record it was made from is the same afterwards", what)
		}
	}
}

// A CA that the peer retired does not come back by the file; one that nobody knew
// replaces it, since the file is the operator's word.
func TestDeclarationsBringNoRetiredCABack(t *testing.T) {
	before, after, other := caOf(t, "west"), caOf(t, "west"), caOf(t, "west")
	old := applied(t, declaredWest(after), rotated(t, before, after)) // the file follows
	back := declaredWest(before)
	if _, err := back.apply(west(), old, time.Unix(1, 0)); err == nil || !strings.Contains(err.Error(), "west replaced it by another one") {
		t.Errorf("the retired CA: %v", err)
	}
	if _, err := declaredWest(after, before).apply(west(), old, time.Unix(1, 0)); err == nil {
		t.Error("the retired CA beside the present one was taken")
	}
	if got := applied(t, declaredWest(other), old).GetTrustBundle(); !sameRaw(got, [][]byte{other.Raw}) {
		t.Error("another CA in the file was not taken")
	}
	retire(old, [][]byte{after.Raw, before.Raw})
	if len(old.GetRetired()) != 0 {
		t.Error("a CA that the peer has again counts as retired")
	}
	for range 3 * retiredKept {
		old.TrustBundle = [][]byte{caOf(t, "west").Raw}
		retire(old, nil)
	}
	if n := len(old.GetRetired()); n != retiredKept {
		t.Errorf("%d retired CAs are kept, want %d", n, retiredKept)
	}
}

// Of what was declared to a version that kept its hash alone, an unchanged file
// changes nothing, and one that changed brings no CA back.
func TestDeclarationsOfBefore(t *testing.T) {
	before, after := caOf(t, "west"), caOf(t, "west")
	old := rotated(t, before, after)
	old.Declaration, old.Retired = nil, nil
	want := proto.CloneOf(old)
	want.Declaration = declaredWest(before).record()
	if got := applied(t, declaredWest(before), old); !proto.Equal(got, want) {
		t.Errorf("the same file changed:\n%v\nwant\n%v", got, want)
	}
	more := declaredWest(before)
	more.Namespaces = []string{"demo"}
	if _, err := more.apply(west(), old, time.Unix(1, 0)); err == nil || !strings.Contains(err.Error(), "is not believed") {
		t.Errorf("the CA of before: %v", err)
	}
	more.CAs = []*x509.Certificate{after}
	if got := applied(t, more, old); !sameRaw(got.GetTrustBundle(), [][]byte{after.Raw}) || len(got.GetGrant().GetNamespaces()) != 1 || got.GetGrant().GetMaxServices() != 3 {
		t.Errorf("a file with the present CA: %v", got)
	}
}
