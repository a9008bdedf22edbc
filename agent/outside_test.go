// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"testing"
)

// An etcd that has a name stays outside of the mesh's routes wherever the name
// leads, and routes are told when that changes.
func TestNamesStayOutside(t *testing.T) {
	var answer []netip.Addr
	var fails error
	o := newOutside([]string{"https://etcd.example:2379", "https://192.0.2.1:2379"}, nil,
		func(context.Context, string, string) ([]netip.Addr, error) { return answer, fails }, slog.New(slog.DiscardHandler))
	changes := o.addrs.Subscribe()
	defer changes.Close()
	fixed, first, second := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")
	for _, c := range []struct {
		step   string
		answer []netip.Addr
		fails  error
		want   []netip.Addr // beside the one that has no name
		told   int
	}{
		{"not found yet", nil, errors.New("no such host"), nil, 1}, // the one that has no name
		{"found", []netip.Addr{netip.MustParseAddr("::ffff:198.51.100.1")}, nil, []netip.Addr{first}, 1},
		{"same again", []netip.Addr{first}, nil, []netip.Addr{first}, 0},
		{"the resolver is away", nil, errors.New("timeout"), []netip.Addr{first}, 0},
		{"it moved", []netip.Addr{second}, nil, []netip.Addr{second}, 2},
	} {
		answer, fails = c.answer, c.fails
		o.resolve(t.Context())
		want := map[netip.Addr]string{fixed: "etcd"}
		for _, a := range c.want {
			want[a] = "etcd"
		}
		if got, _ := o.addrs.Snapshot(); !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", c.step, got, want)
		}
		if told, _ := changes.Take(); len(told) != c.told {
			t.Errorf("%s: told of %v", c.step, told)
		}
	}
}
