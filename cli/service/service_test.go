// SPDX-License-Identifier: Apache-2.0

package service

import (
	"bytes"
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

// An operator sees which backends each port has, and which has none.
func TestGetTellsPorts(t *testing.T) {
	backend := func(ip string, port uint32, protocol, name string) *hawserv1.FrontendBackend {
		return &hawserv1.FrontendBackend{Ip: ip, Port: port, Protocol: protocol, PortName: name, Cluster: "east", Node: "n1", Workload: "demo/a", State: "active"}
	}
	ports := []*hawserv1.ServicePortInfo{
		{Name: "web", Protocol: "tcp", Port: 80}, {Name: "dns", Protocol: "udp", Port: 53}, {Name: "dns", Protocol: "tcp", Port: 53},
	}
	info := func(backends ...*hawserv1.FrontendBackend) *hawserv1.ServiceInfo {
		return &hawserv1.ServiceInfo{Namespace: "demo", Name: "s", Vips: []string{"172.31.1.1"}, Ports: ports, Backends: backends}
	}
	const head = "Service:    demo/s\nGlobal id:  0\nAddress:    172.31.1.1\nPorts:      80/TCP,53/UDP,53/TCP\nScope:      local\n\n"
	for want, r := range map[string]*hawserv1.ServiceInfo{
		"No backends: new connections are refused.\n": info(),
		"PORT  NAME  BACKEND        CLUSTER  NODE  WORKLOAD  STATE\n" +
			"–     –     10.1.0.1:8080  east     n1    demo/a    active\n": info(backend("10.1.0.1", 8080, "", "")), // an API server of before
		"PORT         NAME  BACKEND         CLUSTER  NODE  WORKLOAD  STATE\n" +
			"80/TCP       web   10.1.0.1:8080   east     n1    demo/a    active\n" +
			"80/TCP       web   [fd00::1]:8080  east     n1    demo/a    active\n" +
			"53/UDP       dns   10.1.0.1:5353   east     n1    demo/a    active\n" +
			"53/TCP       dns   none            –        –     –         –\n" +
			"none of TCP  old   10.1.0.1:9000   east     n1    demo/a    active\n": info(backend("10.1.0.1", 5353, "udp", "dns"), backend("10.1.0.1", 8080, "tcp", "web"),
			backend("10.1.0.1", 9000, "tcp", "old"), backend("fd00::1", 8080, "tcp", "web")),
	} {
		var b bytes.Buffer
		if err := show(&b, r); err != nil {
			t.Fatal(err)
		}
		if b.String() != head+want {
			t.Errorf("got\n%swant\n%s", b.String(), head+want)
		}
	}
}
