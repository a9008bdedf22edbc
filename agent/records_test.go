// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRecordsSurvive(t *testing.T) {
	dir := t.TempDir()
	s, err := openRecords(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := record{ID: 7, ContainerID: "c", IfName: "eth0", Addr: netip.MustParseAddr("10.1.1.2"), State: stateReady,
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
	if err != nil || len(got) != 1 || got[0].Addr != want.Addr || got[0].PodMAC != want.PodMAC || got[0].Labels[0] != want.Labels[0] {
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
