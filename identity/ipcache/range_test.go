// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"net/netip"
	"testing"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/datapath"
)

func TestRangeOfAClusterIsNotOutside(t *testing.T) {
	c, err := New(Config{Cluster: "east", Node: "n1", Tunnel: netip.MustParseAddr("192.168.1.1")})
	if err != nil {
		t.Fatal(err)
	}
	tables := datapath.NewTables()
	row := func(p string) (datapath.IPEntry, bool) {
		c.Publish(tables.IPCache, tables.Nodes)
		return tables.IPCache.Get(datapath.IPKey{Prefix: netip.MustParsePrefix(p)})
	}
	pods, services := netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("10.102.0.0/16")
	c.SetRanges("west", []netip.Prefix{pods, services})
	for _, p := range []string{"10.2.0.0/16", "10.102.0.0/16"} {
		if e, ok := row(p); !ok || e.Flags != datapath.IPCIDR || e.Tunnel.IsValid() {
			t.Errorf("row of %s is %+v, %v; want one that leads nowhere", p, e, ok)
		}
	}
	// A node that has all of the cluster's pods is believed before the range.
	if err := c.UpsertVTEP("west", &keyspacev1.VTEP{Prefix: "10.2.0.0/16", TunnelAddress: "192.168.2.1", Node: "w1"}); err != nil {
		t.Fatal(err)
	}
	if e, _ := row("10.2.0.0/16"); e.Tunnel != netip.MustParseAddr("192.168.2.1") {
		t.Errorf("the node's prefix is hidden by the range: %+v", e)
	}
	c.SetRanges("west", []netip.Prefix{pods})
	if _, ok := row("10.102.0.0/16"); ok {
		t.Error("a range that is no longer told is still there")
	}
	c.DeleteVTEP("west", pods)
	if e, ok := row("10.2.0.0/16"); !ok || e.Tunnel.IsValid() {
		t.Errorf("without the node: %+v, %v", e, ok)
	}
	c.DeleteCluster("west")
	if _, ok := row("10.2.0.0/16"); ok {
		t.Error("a deleted cluster's range is still there")
	}
}
