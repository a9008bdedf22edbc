// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// Where the Kubernetes API servers are is checked at the start, and told to nodes
// by the cluster's record.
func TestKubeAPIServers(t *testing.T) {
	good := []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("fd00:9::/125")}
	for want, list := range map[string][]netip.Prefix{
		"": good,
		"--kube-apiserver-address 192.0.2.1/24: has host bits; did you mean 192.0.2.0/24?": {netip.MustParsePrefix("192.0.2.1/24")},
		"--kube-apiserver-address 0.0.0.0/0: a default route":                              {netip.MustParsePrefix("0.0.0.0/0")},
		"--kube-apiserver-address: 65 addresses; at most 64":                               slices.Repeat(good[:1], 65),
	} {
		cfg := testConfig(t)
		cfg.KubeAPIServers = list
		if err := cfg.Validate(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v; want %q", list, err, want)
		}
	}
	cfg := testConfig(t)
	cfg.KubeAPIServers = good
	if got := cfg.record().GetKubeApiservers(); !slices.Equal(got, []string{"192.0.2.1/32", "fd00:9::/125"}) {
		t.Errorf("the record says %v", got)
	}
}
