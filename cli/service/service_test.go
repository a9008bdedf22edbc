// SPDX-License-Identifier: Apache-2.0

package service

import (
	"testing"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

func TestBackends(t *testing.T) {
	const v4, v6 = "172.31.1.1", "fd00:172:1::1"
	for want, c := range map[string]struct{ vips, backends []string }{
		"0":              {[]string{v4}, nil},
		"2":              {[]string{v4}, []string{"10.1.0.1", "10.1.0.2", "10.1.0.1"}}, // one of two ports
		"1":              {[]string{v6}, []string{"fd00:10::1"}},
		"2 IPv4, 1 IPv6": {[]string{v4, v6}, []string{"10.1.0.1", "10.1.0.2", "fd00:10::1"}},
		"2 IPv4, 0 IPv6": {[]string{v4, v6}, []string{"10.1.0.1", "10.1.0.2"}},
		"1 IPv4, 1 IPv6": {nil, []string{"10.1.0.1", "fd00:10::1"}}, // headless
	} {
		info := &hawserv1.ServiceInfo{Vips: c.vips}
		for i, ip := range c.backends {
			info.Backends = append(info.Backends, &hawserv1.FrontendBackend{Ip: ip, Port: uint32(8080 + i)})
		}
		if got := backends(info); got != want {
			t.Errorf("%v behind %v: %q, want %q", c.backends, c.vips, got, want)
		}
	}
}
