// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

func TestNamedPortsOfIdentities(t *testing.T) {
	web := policy.NamedPort{Name: "web", Protocol: api.TCP, Port: 80}
	alt := policy.NamedPort{Name: "web", Protocol: api.TCP, Port: 8080}
	p := newNamedPorts()
	step := func(key string, n identity.Number, ports []policy.NamedPort, changed ...identity.Number) {
		t.Helper()
		if got := p.set(key, n, ports); !slices.Equal(got, changed) {
			t.Errorf("%s: %v changed, want %v", key, got, changed)
		}
	}
	step("a", 300, nil)
	step("a", 300, []policy.NamedPort{web}, 300)
	step("b", 300, []policy.NamedPort{alt}, 300)
	if len(p.of(300)) != 2 {
		t.Errorf("two addresses with one identity: %v", p.of(300))
	}
	step("a", 301, []policy.NamedPort{web}, 300, 301)
	if !slices.Equal(p.of(300), []policy.NamedPort{alt}) || !slices.Equal(p.of(301), []policy.NamedPort{web}) {
		t.Errorf("after a move: %v and %v", p.of(300), p.of(301))
	}
	step("a", 0, nil, 301)
	step("b", 0, nil, 300)
	if len(p.byKey) != 0 || len(p.byID) != 0 {
		t.Errorf("left behind: %+v", p)
	}
}

func TestParseNamedPorts(t *testing.T) {
	got, err := parseNamedPorts([]string{"web=80/tcp", "dns=53/UDP", "x-1=9"})
	want := []policy.NamedPort{{Name: "web", Protocol: api.TCP, Port: 80}, {Name: "dns", Protocol: api.UDP, Port: 53}, {Name: "x-1", Protocol: api.TCP, Port: 9}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, error %v", got, err)
	}
	for _, bad := range []string{"web", "=80", "web=0/tcp", "web=65536", "web=80/icmp", "Web=80", "web=80/tcp/x", strings.Repeat("x", 16) + "=80"} {
		if _, err := parseNamedPorts([]string{bad}); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	if _, err := parseNamedPorts(slices.Repeat([]string{"web=80"}, maxNamedPorts+1)); err == nil {
		t.Error("any number of names is accepted")
	}
}
