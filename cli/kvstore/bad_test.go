// SPDX-License-Identifier: Apache-2.0

package kvstore_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/kvstore"
)

// What cannot be decoded, or lies, is shown with what is wrong with it, in each
// listing and each format; nothing hides it.
func TestBadRecordsAreShown(t *testing.T) {
	r := newRig(t)
	r.fill(t)
	bad := map[string]string{ // key and value
		r.state(kvstore.KindNode, "n2").String():        "\xff\xff not a record",
		r.state(kvstore.KindIP, "10.1.0.8/32").String(): "",
	}
	for k, v := range bad {
		if _, err := r.api.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(k, []byte(v))}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for k := range bad {
		for _, o := range []string{"table", "json", "yaml"} {
			out, errs, code := r.run(t, "", "get", k, "-o", o)
			if !strings.Contains(out+errs, "decode: ") && !strings.Contains(out+errs, "address: ") {
				t.Errorf("get %s -o %s: %d\n%s%s", k, o, code, out, errs)
			}
			out, errs, code = r.run(t, "", "ls", "state/"+r.Cluster, "-o", o)
			if code != 0 || strings.Count(out, "decode: ")+strings.Count(out, "address: ") != len(bad) {
				t.Errorf("ls -o %s: %d\n%s%s", o, code, out, errs)
			}
		}
	}
	out, errs, code := r.run(t, "", "tree")
	for _, want := range []string{"nodes", "identities/id", "ips", "policies", "2 not believed"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("tree: %d, want %q in:\n%s%s", code, want, out, errs)
		}
	}
	out, _, code = r.run(t, "", "tree", "-o", "json")
	var branches []struct {
		Kind string `json:"kind"`
		Keys int    `json:"keys"`
		Bad  int    `json:"bad"`
	}
	if err := json.Unmarshal([]byte(out), &branches); err != nil || code != 0 {
		t.Fatalf("tree -o json: %d, %v\n%s", code, err, out)
	}
	counted := 0
	for _, b := range branches {
		counted += b.Bad
		if b.Kind == string(kvstore.KindNode) && (b.Keys != 2 || b.Bad != 1) {
			t.Errorf("nodes: %+v", b)
		}
	}
	if counted != len(bad) {
		t.Errorf("%d bad records in the tree, want %d:\n%s", counted, len(bad), out)
	}
}
