// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/tunnel"
)

const enrolled = `{"cluster":"east","node":"n1","etcdEndpoints":["https://192.0.2.1:2379"],"apiEndpoints":["192.0.2.1:4244"],"clusterBits":9,"tunnelPort":4789,"tokenID":"x"}`

func TestEnrolmentFillsTheConfig(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "enrolment.json"), []byte(enrolled), 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	for name, c := range map[string]struct {
		told Config
		says string // in the error; empty: it fits
	}{
		"nothing told":    {Config{}, ""},
		"the same told":   {Config{Cluster: "east", Node: "n1", ClusterBits: 9, TunnelPort: 4789}, ""},
		"token file gone": {Config{Join: "@" + filepath.Join(dir, "none")}, ""},
		"other cluster":   {Config{Cluster: "west"}, "--cluster west"},
		"other node":      {Config{Node: "n2"}, "--node n2"},
		"other bits":      {Config{ClusterBits: 8}, "--cluster-bits 8"},
		"other port":      {Config{TunnelPort: 8472}, "--tunnel-port 8472"},
		"damaged token":   {Config{Join: "hw1.xx"}, "--join"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := c.told
			cfg.TLSDir, cfg.Log = dir, log
			state, err := cfg.complete(t.Context())
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("error %v, want one with %q", err, c.says)
				}
				return
			}
			if err != nil || state == nil {
				t.Fatalf("%v, %v", state, err)
			}
			if cfg.Cluster != "east" || cfg.Node != "n1" || cfg.ClusterBits != 9 || cfg.TunnelPort != 4789 ||
				cfg.EtcdEndpoints[0] != "https://192.0.2.1:2379" || cfg.PinPath != "/sys/fs/bpf/hawser/n1" {
				t.Errorf("config %+v", cfg)
			}
		})
	}
}

func TestConfigWithoutEnrolment(t *testing.T) {
	cfg := Config{TLSDir: t.TempDir(), Node: "n1", EtcdEndpoints: []string{"https://e:1"}, Log: slog.New(slog.DiscardHandler)}
	state, err := cfg.complete(t.Context())
	if err != nil || state != nil || cfg.ClusterBits != 8 || cfg.TunnelPort != tunnel.DefaultVXLANPort || cfg.EtcdEndpoints[0] != "https://e:1" {
		t.Errorf("%v, %v, %+v", state, err, cfg)
	}
}
