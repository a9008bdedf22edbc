// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/objects"
)

// leaf is a scalar or byte array at an offset; names differ between C and Go,
// places and sizes must not.
type leaf struct{ offset, size uint32 }

func cLeaves(t btf.Type, at uint32, out map[leaf]bool) {
	switch v := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		for _, m := range v.Members {
			cLeaves(m.Type, at+m.Offset.Bytes(), out)
		}
	case *btf.Array:
		size, err := btf.Sizeof(v)
		if err != nil {
			panic(err)
		}
		out[leaf{at, uint32(size)}] = true
	default:
		size, err := btf.Sizeof(v)
		if err != nil {
			panic(err)
		}
		out[leaf{at, uint32(size)}] = true
	}
}

func goLeaves(t reflect.Type, at uint32, out map[leaf]bool) {
	if t.Kind() != reflect.Struct {
		out[leaf{at, uint32(t.Size())}] = true
		return
	}
	for i := range t.NumField() {
		f := t.Field(i)
		goLeaves(f.Type, at+uint32(f.Offset), out)
	}
}

func TestLayoutsMatchObjects(t *testing.T) {
	spec, err := objects.LoadHawser()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		m          string
		key, value any
	}{
		{"ep_devices", uint32(0), Endpoint{}},
		{"endpoints", IPKey{}, Endpoint{}},
		{"ipcache", IPKey{}, IPEntry{}},
		{"ipcache_prefix", IPPrefix{}, IPEntry{}},
		{"nodes", uint32(0), Node{}},
		{"vteps", uint32(0), VTEP{}},
		{"node_addrs", Addr{}, uint32(0)},
		{"identities", uint32(0), uint32(0)},
		{"rule_sets", uint32(0), uint64(0)},
		{"policy", PolicyKey{}, PolicyEntry{}},
		{"ct4", Tuple4{}, CTEntry{}},
		{"ct4_open", Tuple4{}, CTEntry{}},
		{"ct6", Tuple6{}, CTEntry{}},
		{"ct6_open", Tuple6{}, CTEntry{}},
		{"services", FrontendKey{}, Frontend{}},
		{"service_slots", SlotKey{}, uint32(0)},
		{"backends", uint32(0), Backend{}},
		{"affinities", AffinityKey{}, Affinity{}},
		{"fragments", FragmentKey{}, FragmentPorts{}},
		{"fragments6", Fragment6Key{}, Fragment6Ports{}},
		{"snat4", SNATKey{}, SNATEntry{}},
		{"snat4_open", SNATKey{}, SNATEntry{}},
		{"snat6", SNAT6Key{}, SNAT6Entry{}},
		{"snat6_open", SNAT6Key{}, SNAT6Entry{}},
		{"watched", uint32(0), Watch{}},
		{"sock_peers", SockKey{}, SockPeer{}},
		{"sock_links", uint64(0), SockLink{}},
		{"metrics", uint32(0), Metric{}},
	} {
		compare(t, c.m+" key", spec.Maps[c.m].Key, reflect.TypeOf(c.key))
		compare(t, c.m+" value", spec.Maps[c.m].Value, reflect.TypeOf(c.value))
	}
	var event *btf.Struct
	if err := spec.Types.TypeByName("event", &event); err != nil {
		t.Fatal(err)
	}
	compare(t, "event", event, reflect.TypeFor[Event]())
}

func compare(t *testing.T, what string, c btf.Type, g reflect.Type) {
	t.Helper()
	size, err := btf.Sizeof(c)
	if err != nil {
		t.Fatal(err)
	}
	if uintptr(size) != g.Size() {
		t.Errorf("%s: %d bytes in C, %d in Go", what, size, g.Size())
	}
	inC, inGo := map[leaf]bool{}, map[leaf]bool{}
	cLeaves(c, 0, inC)
	goLeaves(g, 0, inGo)
	if !reflect.DeepEqual(inC, inGo) {
		t.Errorf("%s: places (offset, size) in C %v, in Go %v", what, inC, inGo)
	}
}

// The sizes that speed rests on.
func TestConntrackSizes(t *testing.T) {
	if s := reflect.TypeFor[Tuple4]().Size(); s != 16 {
		t.Errorf("conntrack key has %d bytes, want 16", s)
	}
	if s := reflect.TypeFor[Tuple6]().Size(); s != 40 {
		t.Errorf("the conntrack key of IPv6 has %d bytes, want 40", s)
	}
	if f, _ := reflect.TypeFor[CTEntry]().FieldByName("NATAddr"); f.Offset != 64 {
		t.Errorf("the hot part of a conntrack entry has %d bytes, want 64", f.Offset)
	}
}

func TestReasonsMatchHeader(t *testing.T) {
	header, err := os.ReadFile("../../bpf/lib/drop.h")
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile(`(?m)^\t(?:DROP|AUDIT)_\w+ = (\d+), +/\* (.*) \*/$`).FindAllStringSubmatch(string(header), -1)
	if len(lines) < 20 {
		t.Fatalf("found %d reasons in drop.h", len(lines))
	}
	for _, l := range lines {
		n, _ := strconv.Atoi(l[1])
		if n == DropReasons {
			continue
		}
		if got := ReasonName(datapath.DropReason(n)); got != l[2] {
			t.Errorf("reason %d is %q in drop.h, %q in Go", n, l[2], got)
		}
	}
	if strings.HasPrefix(ReasonName(datapath.DropReason(len(lines)-3)), "reason ") {
		t.Error("the last reason has no name in Go")
	}
}

func TestIPKeysKeepClusterAndWidth(t *testing.T) {
	for _, s := range []string{"10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "2001:db8::/48", "::/0", "8000::/1", "::fffe:0:0/95"} {
		k := datapath.IPKey{ClusterID: 2, Prefix: netip.MustParsePrefix(s)}
		cluster, prefix := EncodeIPPrefix(k).Prefix()
		if cluster != 2 || prefix != k.Prefix {
			t.Errorf("%s in cluster 2 came back as %s in %d", s, prefix, cluster)
		}
	}
	k := datapath.IPKey{ClusterID: 2, Prefix: netip.MustParsePrefix("2001:db8::7/128")}
	if got := EncodeIPKey(k); got.Cluster != 2 || got.Addr.Netip() != k.Prefix.Addr() {
		t.Errorf("%v became %v", k, got)
	}
}

func TestRulesWordRoundTrip(t *testing.T) {
	want := Rules{Epoch: 1<<32 - 1, Valid: true, DenyEgress: true, IngressLevels: 0x15, EgressLevels: 0x2A, EgressBlocks: true, Audit: true, Ranges: 0x43}
	if got := RulesFrom(want.Word()); got != want {
		t.Errorf("%+v came back as %+v", want, got)
	}
}

func TestLevels(t *testing.T) {
	for want, k := range []PolicyKey{
		{Identity: 300, Protocol: 6, Port: PortFrom(80)}, {Identity: 300, Protocol: 6},
		{Identity: 300}, {Protocol: 6, Port: PortFrom(80)}, {Protocol: 6}, {},
	} {
		if got := k.Level(); got != 1<<want {
			t.Errorf("%+v is at level mask %#x, want %#x", k, got, 1<<want)
		}
	}
}
