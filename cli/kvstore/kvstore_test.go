// SPDX-License-Identifier: Apache-2.0

package kvstore_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/cli"
	"github.com/hawser-mesh/hawser/cli/clicontext"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"sigs.k8s.io/yaml"
)

// rig is a real etcd and a command line that reaches it as an administrator.
type rig struct {
	*etcdtest.Etcd
	context string
	api     kvstore.Client
}

func newRig(t *testing.T) *rig {
	t.Helper()
	e := etcdtest.Start(t)
	dir := t.TempDir()
	leaf, err := e.CA.Issue(pki.Request{Role: pki.RoleAdmin, Name: "me"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Save(dir, "tls"); err != nil {
		t.Fatal(err)
	}
	raw, err := yaml.Marshal(clicontext.Context{Name: "test", Clusters: []clicontext.Cluster{{
		Name: e.Cluster, Socket: filepath.Join(dir, "none.sock"),
		Etcd: &clicontext.Etcd{Endpoint: e.Server.Endpoint(), TLSDir: dir},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "context.yaml")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return &rig{Etcd: e, context: path, api: e.APIServer(t)}
}

// run is one command line: `hawser kvstore args…`.
func (r *rig) run(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return r.runWith(t.Context(), stdin, args...)
}

func (r *rig) runWith(ctx context.Context, stdin string, args ...string) (stdout, stderr string, code int) {
	cmd := cli.New("hawser")
	var out, errs bytes.Buffer
	cmd.SetArgs(append([]string{"--context", r.context, "kvstore"}, args...))
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	err := cmd.ExecuteContext(ctx)
	code = cli.Report(&errs, err)
	return out.String(), errs.String(), code
}

func (r *rig) state(k kvstore.Kind, names ...string) kvstore.Key {
	return kvstore.NewKey(kvstore.State, r.Cluster, k, names...)
}

func (r *rig) local(k kvstore.Kind, names ...string) kvstore.Key {
	return kvstore.NewKey(kvstore.Local, r.Cluster, k, names...)
}

func (r *rig) private(k kvstore.Kind, names ...string) kvstore.Key {
	return kvstore.NewKey(kvstore.Private, r.Cluster, k, names...)
}

func (r *rig) put(t *testing.T, k kvstore.Key, m proto.Message) {
	t.Helper()
	var value []byte
	var err error
	if m != nil {
		if value, err = kvstore.Encode(k, m); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.api.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(k.String(), value)}, nil); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) value(t *testing.T, k kvstore.Key) (string, bool) {
	t.Helper()
	kv, _, err := r.api.Get(t.Context(), k.String())
	if err != nil {
		t.Fatal(err)
	}
	if kv == nil {
		return "", false
	}
	return string(kv.Value), true
}

// fill stores a small cluster: a node, an identity in use, an address, a service
// with a slice.
func (r *rig) fill(t *testing.T) {
	t.Helper()
	set, err := labels.ParseSet([]string{"cni:app=a", "mesh:cluster=" + r.Cluster}, labels.Any)
	if err != nil {
		t.Fatal(err)
	}
	r.put(t, r.state(kvstore.KindNode, "n1"), &keyspacev1.Node{Name: "n1", Cluster: r.Cluster})
	r.put(t, r.state(kvstore.KindIdentity, "65537"), &keyspacev1.Identity{Number: 65537, Labels: set.Strings()})
	r.put(t, r.state(kvstore.KindIdentityLabels, set.Hash()), &keyspacev1.IdentityRef{Number: 65537})
	r.put(t, r.state(kvstore.KindIP, "10.1.0.7/32"), &keyspacev1.IPEntry{Prefix: "10.1.0.7/32", Identity: 65537, Node: "n1"})
	r.put(t, r.state(kvstore.KindService, "demo", "echo"), &keyspacev1.Service{Namespace: "demo", Name: "echo"})
	r.put(t, r.state(kvstore.KindSlice, "demo", "echo", "n1"), &keyspacev1.BackendSlice{Namespace: "demo", Service: "echo", Name: "n1"})
	r.put(t, r.local(kvstore.KindRef, "65537", "n1"), nil)
	r.put(t, r.local(kvstore.KindPolicy, "_", "p"), &keyspacev1.PolicyObject{Namespace: "_", Name: "p", Kind: "x"})
}

func TestPutGetDel(t *testing.T) {
	r := newRig(t)
	key := "state/" + r.Cluster + "/vteps/10.9.0.0%2F24"
	record := "{prefix: 10.9.0.0/24, tunnel_address: 192.0.2.7}"
	if _, errs, code := r.run(t, "", "put", key, record); code != session.WrongUse || !strings.Contains(errs, "--write") {
		t.Errorf("put without --write: %d %s", code, errs)
	}
	if _, exists := r.value(t, r.state(kvstore.KindVTEP, "10.9.0.0/24")); exists {
		t.Fatal("put without --write wrote")
	}
	if out, errs, code := r.run(t, "", "put", key, record, "--write"); code != 0 || !strings.Contains(out, "Stored "+key) {
		t.Fatalf("put: %d %s%s", code, out, errs)
	}
	out, _, code := r.run(t, "", "get", key, "-o", "json")
	var e struct {
		Record struct {
			Tunnel string `json:"tunnel_address"`
		} `json:"record"`
	}
	if err := json.Unmarshal([]byte(out), &e); err != nil || code != 0 || e.Record.Tunnel != "192.0.2.7" {
		t.Errorf("get: %d %v %s", code, err, out)
	}
	for what, c := range map[string]struct {
		args []string
		want string
	}{
		"a lie":           {[]string{"put", key, "{prefix: 10.8.0.0/24, tunnel_address: 192.0.2.7}", "--write"}, "mismatch"},
		"a wrong field":   {[]string{"put", key, "{prefix: 10.9.0.0/24, tunnel: 192.0.2.7}", "--write"}, "tunnel"},
		"nothing":         {[]string{"put", key, "--write"}, "no record"},
		"a strange key":   {[]string{"put", "what/ever", "{}", "--write"}, "too few parts"},
		"a whole subtree": {[]string{"del", "state/", "--prefix", "--write"}, "name at least a subtree and a cluster"},
	} {
		if _, errs, code := r.run(t, "", c.args...); code != session.WrongUse || !strings.Contains(errs, c.want) {
			t.Errorf("%s: %d %s", what, code, errs)
		}
	}
	file := filepath.Join(t.TempDir(), "record.json")
	if err := os.WriteFile(file, []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := r.run(t, "", "put", key, file, "--write"); code != session.WrongUse || !strings.Contains(errs, "--write < "+file) {
		t.Errorf("put of a file's name: %d %s", code, errs)
	}
	if out, errs, code := r.run(t, record, "put", key, "--write", "-o", "yaml"); code != 0 || !strings.Contains(out, "revision:") {
		t.Errorf("put from standard input: %d %s%s", code, out, errs)
	}
	if _, _, code := r.run(t, "", "del", key); code != session.WrongUse {
		t.Errorf("del without --write: %d", code)
	}
	if out, errs, code := r.run(t, "", "del", "state/"+r.Cluster, "--prefix", "--write"); code != 0 || !strings.Contains(out, "Removed 1 key") {
		t.Errorf("del: %d %s%s", code, out, errs)
	}
	if _, errs, code := r.run(t, "", "del", key, "--write"); code != session.No || !strings.Contains(errs, "there is no key") {
		t.Errorf("del of nothing: %d %s", code, errs)
	}
}

func TestWatchShowsChanges(t *testing.T) {
	r := newRig(t)
	_, rev, err := r.api.Get(t.Context(), r.state(kvstore.KindNode, "n1").String())
	if err != nil {
		t.Fatal(err)
	}
	r.fill(t)
	if _, err := r.api.Txn(t.Context(), nil, []kvstore.Op{kvstore.Delete(r.state(kvstore.KindIP, "10.1.0.7/32").String())}, nil); err != nil {
		t.Fatal(err)
	}
	from := []string{"--from", itoa(rev + 1), "--count"}
	out, errs, code := r.run(t, "", append([]string{"watch", "state/" + r.Cluster + "/ips"}, append(from, "2")...)...)
	if lines := strings.Split(strings.TrimSpace(out), "\n"); code != 0 || len(lines) != 2 || !strings.Contains(lines[0], "put") || !strings.Contains(lines[1], "del") {
		t.Errorf("watch: %d %s%s", code, out, errs)
	}
	out, errs, code = r.run(t, "", append([]string{"watch", "-o", "json"}, append(from, "1")...)...)
	var c struct {
		Key     string
		Deleted bool
		Record  struct{ Name string }
	}
	if err := json.Unmarshal([]byte(out), &c); err != nil || code != 0 || c.Record.Name != "n1" || c.Deleted {
		t.Errorf("watch as JSON: %d %v %s%s", code, err, out, errs)
	}
	r.watchTimes(t, rev+1)
	if err := r.Server.Compact(t.Context(), rev+5); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := r.run(t, "", append([]string{"watch"}, append(from, "1")...)...); code != session.No || !strings.Contains(errs, "history") {
		t.Errorf("watch of compacted history: %d %s", code, errs)
	}
	if _, errs, code := r.run(t, "", "watch", "private/other"); code != session.No || !strings.Contains(errs, "permission denied") {
		t.Errorf("watch of another's private/: %d %s", code, errs)
	}
}

// watchTimes looks at the times of a watch that begins in the past.
func (r *rig) watchTimes(t *testing.T, from int64) {
	t.Helper()
	long := time.Now().Add(-100 * time.Hour)
	k := r.state(kvstore.KindNode, "old")
	v, err := kvstore.Encode(k, &keyspacev1.Node{Name: "old", Cluster: r.Cluster, UpdatedAt: long.UnixNano()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.api.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(k.String(), v)}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.api.Txn(t.Context(), nil, []kvstore.Op{kvstore.Delete(k.String())}, nil); err != nil {
		t.Fatal(err)
	}
	args := []string{"watch", "state/" + r.Cluster + "/nodes", "--from", itoa(from), "-o", "json", "--timeout", "1s"}
	out, errs, code := r.run(t, "", args...)
	times := map[string]bool{}
	for dec := json.NewDecoder(strings.NewReader(out)); ; {
		var c struct {
			Key     string
			Deleted bool
			Time    *time.Time
		}
		if dec.Decode(&c) != nil {
			break
		}
		switch {
		case !strings.HasSuffix(c.Key, "/old"):
		case c.Deleted:
			times["deleted"] = c.Time == nil
		default:
			times["written"] = c.Time != nil && c.Time.Equal(long)
		}
	}
	if code != 0 || !times["deleted"] || !times["written"] {
		t.Errorf("watch from the past: %d %v %s%s", code, times, out, errs)
	}
	if _, errs, code := r.run(t, "", append(args, "--count", "1000")...); code != session.No || !strings.Contains(errs, "of 1000 changes within 1s") {
		t.Errorf("watch that does not see enough in time: %d %s", code, errs)
	}
	if out, _, _ := r.run(t, "", "watch", "state/"+r.Cluster+"/nodes", "--from", itoa(from), "--timeout", "1s"); !strings.Contains(out, long.Local().Format("2006-01-02 15:04")) {
		t.Errorf("watch from the past as a table: %s", out)
	}
}

func TestTreeTellsMirrors(t *testing.T) {
	r := newRig(t)
	r.fill(t)
	for _, c := range []string{"west", "beside"} {
		r.put(t, kvstore.NewKey(kvstore.State, c, kvstore.KindNode, "n1"), &keyspacev1.Node{Name: "n1", Cluster: c})
	}
	r.put(t, kvstore.NewKey(kvstore.Private, r.Cluster, kvstore.KindPeerView, "west"), &keyspacev1.Peer{Name: "west"})
	out, errs, code := r.run(t, "", "tree")
	says := map[string]string{}
	for _, line := range strings.Split(out, "\n") {
		for _, c := range []string{r.Cluster, "west", "beside"} {
			if strings.Contains(line, " "+c+"/ ") && says[c] == "" {
				says[c] = line
			}
		}
	}
	if code != 0 || strings.Contains(says[r.Cluster], "mirror") || !strings.HasSuffix(says["west"], "   mirror") || !strings.Contains(says["beside"], "no mirror") {
		t.Errorf("tree: %d %s%s", code, out, errs)
	}
}

func TestLsShowsWhatMayBeRead(t *testing.T) {
	r := newRig(t)
	r.fill(t)
	out, errs, code := r.run(t, "", "ls")
	for _, want := range []string{"state/" + r.Cluster + "/", "local/" + r.Cluster + "/"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("ls: %d, want %s in:\n%s%s", code, want, out, errs)
		}
	}
	for _, prefix := range []string{"private/other", "local"} {
		_, errs, code = r.run(t, "", "ls", prefix)
		for _, want := range []string{"permission denied", "state/, local/" + r.Cluster + "/, private/" + r.Cluster + "/"} {
			if code != session.No || !strings.Contains(errs, want) {
				t.Errorf("ls %s: %d %s, want %q", prefix, code, errs, want)
			}
		}
	}
}

func TestDiffTakesKinds(t *testing.T) {
	r := newRig(t)
	for prefix, want := range map[string]int{
		"nope": session.WrongUse, "ip": session.WrongUse, "identities/nope": session.WrongUse, "state/east/ips": session.WrongUse,
		// Those that are good are asked of an API server that is not there.
		"": session.CouldNotAsk, "ips": session.CouldNotAsk, "ips/10.2": session.CouldNotAsk, "identities/": session.CouldNotAsk,
		"identities/id/65": session.CouldNotAsk, "cluster": session.CouldNotAsk, "state/west/ips": session.CouldNotAsk,
	} {
		if _, errs, code := r.run(t, "", "diff", "west", prefix); code != want {
			t.Errorf("diff west %q: exit code %d, want %d: %s", prefix, code, want, errs)
		}
	}
}

func itoa(n int64) string { b, _ := json.Marshal(n); return string(b) }

func TestWatchEndsWithWhereToGoOn(t *testing.T) {
	r := newRig(t)
	done := make(chan string, 1)
	go func() {
		_, errs, _ := r.runWith(t.Context(), "", "watch")
		done <- errs
	}()
	// It watches once a change arrives while the server still runs.
	time.AfterFunc(300*time.Millisecond, r.Stop)
	select {
	case errs := <-done:
		if !strings.Contains(errs, "--from") && !strings.Contains(errs, "no answer") {
			t.Errorf("it ended with %q", errs)
		}
	case <-time.After(20 * time.Second):
		t.Error("it did not end with its server")
	}
}

func TestStatsCountsChurn(t *testing.T) {
	r := newRig(t)
	r.fill(t)
	stop := make(chan struct{})
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		for {
			select {
			case <-stop:
				return
			default:
				k := r.state(kvstore.KindNode, "n1").String()
				v, _ := kvstore.Encode(r.state(kvstore.KindNode, "n1"), &keyspacev1.Node{Name: "n1", Cluster: r.Cluster})
				_, _ = r.api.Txn(context.Background(), nil, []kvstore.Op{kvstore.Put(k, v)}, nil)
			}
		}
	}()
	out, errs, code := r.run(t, "", "stats", "--during", "500ms", "-o", "json")
	close(stop)
	<-wrote
	var stats []struct {
		Subtree, Kind    string
		Keys, Bytes      int
		ChangesPerSecond float64
	}
	if err := json.Unmarshal([]byte(out), &stats); err != nil || code != 0 {
		t.Fatalf("stats: %d %v %s%s", code, err, out, errs)
	}
	kinds := map[string]bool{}
	for _, s := range stats {
		kinds[s.Subtree+"/"+s.Kind] = true
		if s.Keys == 0 || s.Bytes == 0 || (s.ChangesPerSecond > 0) != (s.Kind == "nodes") {
			t.Errorf("%+v", s)
		}
	}
	if len(stats) != 8 || !kinds["state/identities/id"] || !kinds["local/refs"] {
		t.Errorf("kinds %v", kinds)
	}
	if out, _, code := r.run(t, "", "stats", "--during", "0s"); code != 0 || !strings.Contains(out, "CHANGES/S") {
		t.Errorf("table: %d %s", code, out)
	}
}

func TestOrphans(t *testing.T) {
	r := newRig(t)
	r.fill(t)
	if out, errs, code := r.run(t, "", "orphans"); code != 0 || !strings.Contains(out, "No orphans.") {
		t.Fatalf("a sound cluster: %d %s%s", code, out, errs)
	}
	for _, gone := range []kvstore.Key{
		r.state(kvstore.KindNode, "n1"), r.state(kvstore.KindIdentity, "65537"), r.state(kvstore.KindService, "demo", "echo"),
	} {
		if _, err := r.api.Txn(t.Context(), nil, []kvstore.Op{kvstore.Delete(gone.String())}, nil); err != nil {
			t.Fatal(err)
		}
	}
	out, errs, code := r.run(t, "", "orphans", "-o", "json")
	var orphans []struct{ Key, Missing, Kind string }
	if err := json.Unmarshal([]byte(out), &orphans); err != nil || code != session.No {
		t.Fatalf("%d %v %s%s", code, err, out, errs)
	}
	kinds := map[string]int{}
	for _, o := range orphans {
		kinds[o.Kind]++
	}
	// The reference and the address miss both identity and node.
	if len(orphans) != 6 || kinds["refs"] != 2 || kinds["ips"] != 2 || kinds["identities/labels"] != 1 || kinds["slices"] != 1 {
		t.Errorf("orphans: %v", orphans)
	}
	// An unshared service owns its slices, too.
	r.put(t, r.local(kvstore.KindService, "demo", "echo"), &keyspacev1.Service{Namespace: "demo", Name: "echo"})
	if out, _, _ := r.run(t, "", "orphans"); strings.Contains(out, "slices") {
		t.Errorf("slice of an unshared service: %s", out)
	}
}
