// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/lab"
)

// scaleCIDR holds the addresses of the services that are counted.
const scaleCIDR = "172.24.0.0/16"

// scaleVIP is the address of the i-th service.
func scaleVIP(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, 24, byte(1 + i/250), byte(1 + i%250)})
}

// TestPerfServices measures new connections to a service, the last of n: Hawser,
// which balances per packet, and the kernel's NAT over kernel VXLAN.
func TestPerfServices(t *testing.T) {
	r := newReport(t, "services", "new connection (connect, 1 byte each way, close) from a pod to a service whose backend is on another node, p50, client and server on one CPU, the last of so many services; "+
		"Hawser per packet, with policy; nftables (verdict map) and iptables rules as kube-proxy has them, over kernel VXLAN without policy")
	spec := lab.NewSpec(labName("v"), 1, 2)
	spec.Clusters[0].ServiceCIDR = netip.MustParsePrefix(scaleCIDR)
	spec.Agent = map[string]string{"map-sizes": "default"}
	hawser, l := hawserShapeOf(t, spec)
	nft, iptables := kernelShape(t, "nft", true), kernelShape(t, "iptables", true)
	c := newContest(t, hawser, nft, iptables)
	medians, have := map[string][][]float64{}, 0
	for _, n := range []int{10, 1000, 10_000} {
		applyServices(t, l, have, n)
		have = n
		balanceNFT(t, nft, n)
		balanceIPTables(t, iptables, n)
		d := &net.Dialer{Timeout: 200 * time.Millisecond}
		for _, s := range c.shapes {
			etcdtest.Eventually(t, within, s.name+": the service answers", func() bool {
				return answered(t.Context(), s.client, netip.AddrPortFrom(scaleVIP(n-1), onePort), d)
			})
		}
		p50, p99 := map[string][]float64{}, map[string][]float64{}
		for range flags.rounds {
			for _, s := range c.shapes {
				to := s
				to.addr = scaleVIP(n - 1)
				out := c.run(to, placements()[0], role{Mode: "crr", Count: 1500})
				p50[s.name], p99[s.name] = append(p50[s.name], out.P50), append(p99[s.name], out.P99)
			}
		}
		for _, s := range c.shapes {
			r.addRounds(fmt.Sprintf("new connection p50, %d services, %s", n, s.name), "µs", "", p50[s.name], p99[s.name])
			medians[s.name] = append(medians[s.name], p50[s.name])
		}
		r.add(fmt.Sprintf("%d services, hawser / nftables", n), "×", "< 1", ratios(p50["hawser"], p50["nft"]))
		goal := ""
		if n == 10 {
			goal = "≤ 1"
		}
		r.add(fmt.Sprintf("%d services, hawser / iptables", n), "×", goal, ratios(p50["hawser"], p50["iptables"]))
	}
	for _, s := range c.shapes {
		goal := ""
		if s.name == hawser.name {
			goal = "≤ 1.05"
		}
		r.add("10,000 services / 10 services, "+s.name, "×", goal, ratios(medians[s.name][2], medians[s.name][0]))
	}
	r.finish(t)
}

// applyServices writes the records of services of the server pod, from the first
// number up to before the last. (One by one through the API each would look at
// all that there are.)
func applyServices(t *testing.T, l *lab.Lab, from, to int) {
	t.Helper()
	c := l.Clusters()[0]
	writer := command(t, role{Mode: "inject", Cluster: &c, From: from, Count: to - from})
	if err := errors.Join(l.Start(c.Name+"/ctl", writer), writer.Wait()); err != nil {
		t.Fatalf("write services %d to %d: %v", from, to, err)
	}
}

// serviceRecords are what the cluster keeps of the i-th service.
func serviceRecords(c lab.Cluster, i int) (out []record) {
	const first = 1000 // beyond those that were made otherwise
	name, vips, id := fmt.Sprintf("s%d", i), []string{scaleVIP(i).String()}, c.ID<<kvstore.ServiceIDBits+first+uint32(i)
	return []record{
		{kvstore.NewKey(kvstore.State, c.Name, kvstore.KindServiceID, kvstore.NumberName(id)),
			&keyspacev1.ServiceID{Number: id, Namespace: "default", Name: name, Vips: vips}},
		{kvstore.NewKey(kvstore.Private, c.Name, kvstore.KindVIP, vips[0]),
			&keyspacev1.VIPOwner{Ip: vips[0], Namespace: "default", Name: name}},
		{kvstore.NewKey(kvstore.Local, c.Name, kvstore.KindService, "default", name), &keyspacev1.Service{
			Namespace: "default", Name: name, Id: id, Vips: vips, Type: "ClusterIP", Selector: map[string]string{"app": "server"},
			Ports:     []*keyspacev1.ServicePort{{Name: "rr", Protocol: keyspacev1.Protocol_PROTOCOL_TCP, Port: onePort, Target: fmt.Sprint(onePort)}},
			UpdatedAt: time.Now().UnixNano(),
		}},
	}
}
