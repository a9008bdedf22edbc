// SPDX-License-Identifier: Apache-2.0

// Package layers tests that imports point downward, as docs/architecture.md
// draws them.
package layers

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/hawser-mesh/hawser/"

// layerOf maps a package, or a directory with all below it (ending in "/"), to
// its layer; the longest match counts.
var layerOf = map[string]int{
	"cmd/": 5, "cli": 5, "cli/": 5,

	"agent": 4, "agent/": 4, "clustermesh/apiserver": 4, "clustermesh/apiserver/": 4, "lab": 4, "lab/": 4,

	"clustermesh": 3, "clustermesh/": 3, "datapath/loader": 3, "datapath/reconcile": 3,
	"k8s": 3, "k8s/": 3, "observe": 3, "observe/": 3, "cni": 3,

	"kvstore/store": 2, "kvstore/inspect": 2, "kvstore/cas": 2, "identity/allocator": 2, "identity/collector": 2, "identity/ipcache": 2,
	"policy": 2, "policy/trace": 2, "loadbalancer": 2, "loadbalancer/": 2, "ipam": 2,
	"tunnel/": 2, "datapath/netdev": 2, "datapath/sockets": 2,

	"kvstore": 1, "kvstore/etcd": 1, "datapath/maps": 1, "datapath/objects": 1,
	"datapath/features": 1, "api/": 1,

	"internal/": 0, "identity": 0, "identity/labels": 0, "policy/api": 0, "tunnel": 0, "datapath": 0,
}

// testOnly are directories whose packages may import anything: nothing imports
// them but tests.
var testOnly = []string{"test/", "internal/testutil/", "observe/metrics/metricstest", "internal/gendocs", "internal/layers"}

// ban forbids an import that the layers alone would allow.
type ban struct{ from, to, reason string }

var bans = []ban{
	{"clustermesh", module + "datapath", "clusters and packets meet in the agent's tables only"},
	{"datapath", module + "kvstore", "the datapath's rows know no keyspace"},
	{"datapath", module + "k8s", "the datapath's rows know no Kubernetes"},
	{"datapath", module + "api", "the datapath's rows know no records"},
	{"", "go.etcd.io/etcd", "kvstore/etcd is the only importer of etcd"},
	{"policy", module + "kvstore", "policy resolves rules to entries; who stores them is not its matter"},
	{"loadbalancer", module + "kvstore/etcd", "services are merged from records, wherever they come from"},
	{"", "k8s.io/client-go", "only k8s/ talks to a Kubernetes API server"},
}

// excused lets a package out of the bans on one import.
var excused = map[string][]string{
	"go.etcd.io/etcd":   {"kvstore/etcd", "internal/testutil/etcdtest"},
	"k8s.io/client-go":  {"k8s"},
	module + "datapath": {},
}

func TestImportsPointDownward(t *testing.T) {
	for pkg, imports := range packages(t) {
		if within(pkg, testOnly) {
			continue
		}
		from, ok := layer(pkg)
		if !ok {
			t.Errorf("package %s has no layer: add it here and to docs/architecture.md", pkg)
			continue
		}
		for _, imp := range imports {
			rel, own := strings.CutPrefix(imp, module)
			if !own {
				continue
			}
			if to, ok := layer(rel); ok && to > from {
				t.Errorf("%s (layer %d) imports %s (layer %d): imports point downward", pkg, from, rel, to)
			}
			if within(rel, testOnly) {
				t.Errorf("%s imports %s, which is for tests only", pkg, rel)
			}
		}
	}
}

func TestBannedImports(t *testing.T) {
	for pkg, imports := range packages(t) {
		for _, imp := range imports {
			for _, b := range bans {
				if isBelow(pkg, b.from) && isBelow(imp, b.to) && !within(pkg, excused[b.to]) && !isBelow(module+pkg, b.to) {
					t.Errorf("%s imports %s: %s", pkg, imp, b.reason)
				}
			}
		}
	}
}

// packages lists the module's packages, relative, with their imports outside
// of tests.
func packages(t *testing.T) map[string][]string {
	t.Helper()
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "../../...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	pkgs := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		pkgs[strings.TrimPrefix(f[0], module)] = f[1:]
	}
	if len(pkgs) < 10 {
		t.Fatalf("go list found only %d packages", len(pkgs))
	}
	return pkgs
}

func layer(pkg string) (int, bool) {
	best, found := "", false
	for k := range layerOf {
		match := k == pkg || strings.HasSuffix(k, "/") && strings.HasPrefix(pkg, k)
		if match && len(k) >= len(best) {
			best, found = k, true
		}
	}
	return layerOf[best], found
}

func within(pkg string, dirs []string) bool {
	for _, d := range dirs {
		if isBelow(pkg, strings.TrimSuffix(d, "/")) {
			return true
		}
	}
	return false
}

func isBelow(pkg, dir string) bool {
	return dir == "" || pkg == dir || strings.HasPrefix(pkg, dir+"/")
}

func TestLayerLookup(t *testing.T) {
	for pkg, want := range map[string]int{"cmd/hawser": 5, "datapath": 0, "datapath/maps": 1, "clustermesh/apiserver": 4, "clustermesh/peering": 3} {
		if got, ok := layer(pkg); !ok || got != want {
			t.Error(fmt.Errorf("layer of %s is %d, want %d", pkg, got, want))
		}
	}
}
