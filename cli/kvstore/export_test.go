// SPDX-License-Identifier: Apache-2.0

package kvstore_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

func TestExportImport(t *testing.T) {
	r := newRig(t)
	r.fill(t)
	before, err := store.EnsureIncarnation(t.Context(), r.api, r.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	r.put(t, kvstore.SyncedKey(r.Cluster, r.Cluster, kvstore.KindPolicy), &keyspacev1.Synced{Incarnation: before, State: keyspacev1.Synced_STATE_COMPLETE})
	r.put(t, r.private(kvstore.KindProgress, "west"), &keyspacev1.Position{Incarnation: "w", Revision: 7})
	r.put(t, r.local(kvstore.KindPresence, "n1"), &keyspacev1.Presence{Node: "n1"})
	file := filepath.Join(t.TempDir(), "x.jsonl")
	if out, errs, code := r.run(t, "", "export", "--file", file); code != 0 || !strings.Contains(out, "Wrote 8 keys") {
		t.Fatalf("export: %d %s%s", code, out, errs)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file holds secrets: %v %v", info.Mode(), err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, never := range []string{"presence", "synced", "incarnation", "progress"} {
		if strings.Contains(string(text), never) {
			t.Errorf("exported %s", never)
		}
	}

	// n1 is present and has moved on; a policy was lost; another one is new.
	r.put(t, r.state(kvstore.KindNode, "n1"), &keyspacev1.Node{Name: "n1", Cluster: r.Cluster, Mtu: 1400})
	newer, _ := r.value(t, r.state(kvstore.KindNode, "n1"))
	r.put(t, r.local(kvstore.KindPolicy, "_", "later"), &keyspacev1.PolicyObject{Namespace: "_", Name: "later", Kind: "x"})
	if _, err := r.api.Txn(t.Context(), nil, []kvstore.Op{kvstore.Delete(r.local(kvstore.KindPolicy, "_", "p").String())}, nil); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := r.run(t, "", "import", file); code != session.WrongUse || !strings.Contains(errs, "--write") {
		t.Errorf("import without --write: %d %s", code, errs)
	}
	if out, errs, code := r.run(t, "", "import", file, "--dry-run", "--replace"); code != 0 || !strings.Contains(out, "Would write 1 keys, 2 removed") {
		t.Errorf("dry run: %d %s%s", code, out, errs)
	}
	if now, _ := r.value(t, r.private(kvstore.KindIncarnation)); now != before {
		t.Fatal("a dry run changed the incarnation")
	}
	out, errs, code := r.run(t, "", "import", file, "--write", "--replace", "-o", "json")
	var res struct {
		Written, Removed, LeftToOwner int
		Incarnation                   string
	}
	if err := json.Unmarshal([]byte(out), &res); err != nil || code != 0 || res.Written != 1 || res.Removed != 2 || res.LeftToOwner != 1 {
		t.Fatalf("import: %d %v %s%s", code, err, out, errs)
	}
	if now, _ := r.value(t, r.private(kvstore.KindIncarnation)); now == before || now != res.Incarnation {
		t.Errorf("incarnation %q, was %q", now, before)
	}
	for k, want := range map[*kvstore.Key]bool{
		ptr(kvstore.SyncedKey(r.Cluster, r.Cluster, kvstore.KindPolicy)): false, ptr(r.private(kvstore.KindProgress, "west")): false,
		ptr(r.local(kvstore.KindPolicy, "_", "p")): true, ptr(r.local(kvstore.KindPolicy, "_", "later")): false,
	} {
		if _, exists := r.value(t, *k); exists != want {
			t.Errorf("%s exists: %v", k, exists)
		}
	}
	if now, _ := r.value(t, r.state(kvstore.KindNode, "n1")); now != newer {
		t.Error("import wrote over a present agent's node")
	}
}

func ptr[T any](v T) *T { return &v }

func TestImportNeverChangesAnIdentity(t *testing.T) {
	r := newRig(t)
	r.fill(t)
	export, _, _ := r.run(t, "", "export")
	set, err := labels.ParseSet([]string{"cni:app=b", "mesh:cluster=" + r.Cluster}, labels.Any)
	if err != nil {
		t.Fatal(err)
	}
	wipe := kvstore.Delete(kvstore.Prefix(kvstore.State, r.Cluster) + "identities/")
	wipe.Prefix = true
	if _, err := r.api.Txn(t.Context(), nil, []kvstore.Op{wipe}, nil); err != nil {
		t.Fatal(err)
	}
	r.put(t, r.state(kvstore.KindIdentity, "65537"), &keyspacev1.Identity{Number: 65537, Labels: set.Strings()})
	held, _ := r.value(t, r.state(kvstore.KindIdentity, "65537"))
	if _, errs, code := r.run(t, export, "import", "-", "--write"); code != 0 {
		t.Fatalf("import: %s", errs)
	}
	if now, _ := r.value(t, r.state(kvstore.KindIdentity, "65537")); now != held {
		t.Error("the number means other labels now")
	}
	// One that is free comes back with both its keys; a retired one does not.
	for retired, want := range map[bool]int{true: 0, false: 2} {
		if _, err := r.api.Txn(t.Context(), nil, []kvstore.Op{wipe}, nil); err != nil {
			t.Fatal(err)
		}
		if retired {
			r.put(t, r.local(kvstore.KindRetired, "65537"), &keyspacev1.IdentityRef{Number: 65537})
		} else if _, err := r.api.Txn(t.Context(), nil, []kvstore.Op{kvstore.Delete(r.local(kvstore.KindRetired, "65537").String())}, nil); err != nil {
			t.Fatal(err)
		}
		if _, errs, code := r.run(t, export, "import", "-", "--write"); code != 0 {
			t.Fatalf("import: %s", errs)
		}
		p, err := r.api.List(t.Context(), kvstore.Prefix(kvstore.State, r.Cluster)+"identities/", "", 0, 0)
		if err != nil || len(p.KVs) != want {
			t.Errorf("retired %v: %d keys, %v", retired, len(p.KVs), err)
		}
	}
}

func TestImportRefusesAll(t *testing.T) {
	r := newRig(t)
	head := `{"hawserExport":1,"cluster":"` + r.Cluster + `","revision":1,"time":1}` + "\n"
	vtep := func(key, record string) string {
		return `{"key":"hawser/v1/state/` + r.Cluster + `/vteps/` + key + `","record":` + record + `}` + "\n"
	}
	good := vtep("10.9.0.0%2F24", `{"prefix":"10.9.0.0/24","tunnel_address":"192.0.2.7"}`)
	for what, c := range map[string]struct{ text, want string }{
		"no header":       {good, "not an export"},
		"nothing":         {"", "empty"},
		"another cluster": {strings.Replace(head, r.Cluster, "elsewhere", 1) + good, "elsewhere"},
		"two lies": {
			head + good + vtep("10.8.0.0%2F24", `{"prefix":"10.7.0.0/24","tunnel_address":"192.0.2.7"}`) + "{}\n", "line 3: record hawser/v1/state",
		},
		"the same twice":         {head + good + good, "stands in line 2, too"},
		"another's private keys": {head + `{"key":"hawser/v1/private/other/tokens/x","value":"AA=="}` + "\n", "not of cluster"},
		"an edited record": {
			head + strings.Replace(good, `}}`, `},"value":"CgsxMC45LjAuMC8yNBIJMTkyLjAuMi44"}`, 1), `remove "value"`,
		},
	} {
		_, errs, code := r.run(t, c.text, "import", "-", "--write")
		if code != session.No || !strings.Contains(errs, c.want) || !strings.Contains(errs, "nothing was written") {
			t.Errorf("%s: %d %s", what, code, errs)
		}
	}
	if p, err := r.api.List(t.Context(), kvstore.SubtreePrefix(kvstore.State), "", 0, 0); err != nil || len(p.KVs) != 0 {
		t.Errorf("something was written: %d keys, %v", len(p.KVs), err)
	}
	out, errs, code := r.run(t, head+good, "import", "-", "--write")
	if !strings.Contains(out, "The API server begins anew") {
		t.Errorf("it does not say what becomes of the API server: %s", out)
	}
	if code != 0 {
		t.Errorf("a record without value: %d %s", code, errs)
	}
}
