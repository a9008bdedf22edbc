// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
)

func TestRecordsSurvive(t *testing.T) {
	dir := t.TempDir()
	s, err := openRecords(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := record{ID: 7, ContainerID: "c", IfName: "eth0", Addr: netip.MustParseAddr("10.1.1.2"), Addr6: netip.MustParseAddr("fd00:1::2"), State: stateReady,
		Labels: []string{"k8s:app=echo"}, PodMAC: [6]byte{2, 1}}
	if err := s.save(&want); err != nil {
		t.Fatal(err)
	}
	// What a crash between write and rename leaves.
	if err := os.WriteFile(filepath.Join(s.dir, "8.json.new"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err = openRecords(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.load()
	if err != nil || len(got) != 1 || got[0].Addr != want.Addr || got[0].Addr6 != want.Addr6 || got[0].PodMAC != want.PodMAC || got[0].Labels[0] != want.Labels[0] {
		t.Fatalf("loaded %+v, %v", got, err)
	}
	if err := s.remove(7); err != nil {
		t.Fatal(err)
	}
	if err := s.remove(7); err != nil {
		t.Errorf("removing it twice: %v", err)
	}
	if got, err := s.load(); err != nil || len(got) != 0 {
		t.Errorf("after removal: %v, %v", got, err)
	}
}

func TestBadRecordIsNamedAndTheOthersLoad(t *testing.T) {
	s, err := openRecords(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.save(&record{ID: 1, ContainerID: "c", Addr: netip.MustParseAddr("10.1.1.2")}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path(2), []byte("not JSON"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := s.load()
	if len(got) != 1 || err == nil || !strings.Contains(err.Error(), "2.json") {
		t.Errorf("loaded %d, error %v", len(got), err)
	}
}

func TestConfigNamesEveryProblem(t *testing.T) {
	c := Config{Cluster: "Bad!", Node: "a/b", PodCIDR: netip.MustParsePrefix("10.1.1.5/24"), StateDir: "relative"}
	err := c.Validate()
	for _, want := range []string{"--cluster:", "--node:", "--etcd-endpoint", "--underlay-device", "--node-address", "did you mean 10.1.1.0/24?", `--state-dir "relative"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
}

// A record of before there was IPv6 is read, and one without it is written as then.
func TestRecordWithoutIPv6(t *testing.T) {
	s, err := openRecords(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.save(&record{ID: 1, ContainerID: "c", Addr: netip.MustParseAddr("10.1.1.2")}); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(s.path(1))
	if err != nil || strings.Contains(string(raw), "addr6") {
		t.Errorf("%s, %v", raw, err)
	}
	if got, err := s.load(); err != nil || len(got) != 1 || got[0].Addr6.IsValid() || len(got[0].addrs()) != 1 {
		t.Errorf("loaded %+v, %v", got, err)
	}
}

func TestConfigOfTwoFamilies(t *testing.T) {
	for cidr, want := range map[string]string{
		"fd00:1::/64": "", "fd00:1::5/64": "did you mean fd00:1::/64?", "fe80::/64": "must be a range of the cluster's",
		"::ffff:10.0.0.0/120": "must be a range of the cluster's",
	} {
		c := Config{PodCIDR: netip.MustParsePrefix("10.1.1.0/24"), PodCIDR6: netip.MustParsePrefix(cidr)}
		if err := c.Validate(); strings.Contains(err.Error(), "--pod-cidr") != (want != "") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want %q in\n%v", cidr, want, err)
		}
	}
	c := Config{PodCIDR6: netip.MustParsePrefix("fd00:1::/64")}
	if err := c.Validate(); !strings.Contains(err.Error(), "an IPv4 range is needed too") {
		t.Errorf("IPv6 alone: %v", err)
	}
}

func TestIPv6NeedsItsMTU(t *testing.T) {
	c := Config{PodCIDR: netip.MustParsePrefix("10.1.1.0/24")}
	small := netdev.Device{Name: "eth0", MTU: 1329}
	if err := c.checkMTU(small); err != nil {
		t.Errorf("IPv4 alone: %v", err)
	}
	c.PodCIDR6 = netip.MustParsePrefix("fd00:1::/64")
	if err := c.checkMTU(small); err == nil || !strings.Contains(err.Error(), "leaves 1279 in the tunnel") {
		t.Errorf("too small: %v", err)
	}
	small.MTU++
	if err := c.checkMTU(small); err != nil {
		t.Errorf("just enough: %v", err)
	}
}

type fakeIdentities struct {
	adopted, allocated []string
}

func (f *fakeIdentities) Adopt(_ context.Context, ls labels.Set, _ identity.Number) error {
	f.adopted = append(f.adopted, ls.String())
	return nil
}

func (f *fakeIdentities) Allocate(_ context.Context, ls labels.Set) (identity.Number, error) {
	f.allocated = append(f.allocated, ls.String())
	return 70001, nil
}

func (f *fakeIdentities) Release(context.Context, labels.Set) error { return nil }

// A restored endpoint keeps its number only if the same labels count as when it
// got it.
func TestOtherLabelsCountAfterARestart(t *testing.T) {
	all := []string{"k8s:app=echo", "k8s:tier=front", "mesh:cluster=east"}
	tier, err := labels.ParseFilter([]string{"!tier"})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		filter  labels.Filter
		was     []string
		adopted bool
	}{
		"all count, as ever":       {labels.Filter{}, nil, true},
		"all count now":            {labels.Filter{}, []string{"k8s:app=echo", "mesh:cluster=east"}, false},
		"tier still does not":      {tier, []string{"k8s:app=echo", "mesh:cluster=east"}, true},
		"tier does not any more":   {tier, all, false},
		"… in a record of old age": {tier, nil, false},
	} {
		ids := &fakeIdentities{}
		m := &endpoints{ids: ids, filter: c.filter}
		r := &record{State: stateRestoring, Identity: 70000, Labels: all, IdentityLabels: c.was}
		ls, err := r.identityLabels(m.filter)
		if err != nil {
			t.Fatal(err)
		}
		n, err := m.number(t.Context(), r, ls)
		if err != nil || (n == 70000) != c.adopted || (len(ids.adopted) == 1) != c.adopted || (len(ids.allocated) == 0) != c.adopted {
			t.Errorf("%s: number %d, %v; adopted %v, allocated %v", name, n, err, ids.adopted, ids.allocated)
		}
	}
}
