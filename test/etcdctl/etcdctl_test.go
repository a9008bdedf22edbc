// SPDX-License-Identifier: Apache-2.0

package etcdctl

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"

	_ "go.etcd.io/etcd/etcdctl/v3/ctlv3" // the version of the program that is built

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// ctl is etcdctl with an administrator's certificate.
type ctl struct {
	t    *testing.T
	path string
	args []string
}

func newCtl(t *testing.T, e *etcdtest.Etcd, role pki.Role, name string) *ctl {
	t.Helper()
	path := filepath.Join(t.TempDir(), "etcdctl")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, "go.etcd.io/etcd/etcdctl/v3").CombinedOutput(); err != nil {
		t.Fatalf("build etcdctl: %v\n%s", err, out)
	}
	files, err := e.Files(pki.Request{Role: role, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return &ctl{t, path, []string{
		"--endpoints", e.Endpoints()[0], "--cacert", files.CA, "--cert", files.Cert, "--key", files.Key,
	}}
}

func (c *ctl) run(args ...string) (string, error) {
	c.t.Helper()
	out, err := exec.CommandContext(c.t.Context(), c.path, append(slices.Clone(c.args), args...)...).CombinedOutput()
	return string(out), err
}

func (c *ctl) must(args ...string) []string {
	c.t.Helper()
	out, err := c.run(args...)
	if err != nil {
		c.t.Fatalf("etcdctl %v: %v\n%s", args, err, out)
	}
	return strings.FieldsFunc(out, func(r rune) bool { return r == '\n' })
}

// An administrator lists, reads, watches back and counts with etcdctl what Hawser
// stores: keys are one printable line each, in an order that keeps a directory
// together, and say what they are.
func TestKeysReadWellWithEtcdctl(t *testing.T) {
	e := etcdtest.Start(t)
	api, c := e.APIServer(t), e.Cluster
	state := func(k kvstore.Kind, names ...string) kvstore.Key {
		return kvstore.NewKey(kvstore.State, c, k, names...)
	}
	local := func(k kvstore.Kind, names ...string) kvstore.Key {
		return kvstore.NewKey(kvstore.Local, c, k, names...)
	}
	private := func(k kvstore.Kind, names ...string) kvstore.Key {
		return kvstore.NewKey(kvstore.Private, c, k, names...)
	}
	records := []struct {
		key kvstore.Key
		msg proto.Message
	}{
		{state(kvstore.KindCluster), &keyspacev1.Cluster{Id: 1, Name: c, Mesh: &keyspacev1.MeshParameters{ClusterBits: 8}}},
		{state(kvstore.KindNode, "n1"), &keyspacev1.Node{Name: "n1", Cluster: c}},
		{state(kvstore.KindNode, "n10"), &keyspacev1.Node{Name: "n10", Cluster: c}},
		{state(kvstore.KindIP, "10.1.0.5/32"), &keyspacev1.IPEntry{Prefix: "10.1.0.5/32", Identity: 65537, Node: "n1"}},
		{state(kvstore.KindIP, "fd00::5/128"), &keyspacev1.IPEntry{Prefix: "fd00::5/128", Identity: 65537, Node: "n1"}},
		{state(kvstore.KindIdentity, "65537"), &keyspacev1.Identity{Number: 65537, Labels: []string{"mesh:cluster=" + c}}},
		{state(kvstore.KindService, "demo", "echo ä"), &keyspacev1.Service{Namespace: "demo", Name: "echo ä"}},
		{local(kvstore.KindRef, "65537", "n1"), &emptypb.Empty{}},
		{local(kvstore.KindPolicy, "_", "p"), &keyspacev1.PolicyObject{Kind: "RuleArray", Namespace: "_", Name: "p"}},
		{local(kvstore.KindSynced, c, string(kvstore.KindIdentity)), &keyspacev1.Synced{Incarnation: "i"}},
		{private(kvstore.KindIncarnation), wrapperspb.String("an incarnation")},
	}
	var want []string
	for _, r := range records {
		v, err := kvstore.Encode(r.key, r.msg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := api.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(r.key.String(), v)}, nil); err != nil {
			t.Fatal(err)
		}
		want = append(want, r.key.String())
	}
	slices.Sort(want)

	admin := newCtl(t, e, pki.RoleAdmin, "ada")
	var got []string
	for _, p := range []kvstore.Subtree{kvstore.Local, kvstore.Private, kvstore.State} {
		got = append(got, admin.must("get", "--prefix", "--keys-only", kvstore.Prefix(p, c))...)
	}
	if !slices.Equal(got, want) {
		t.Errorf("etcdctl lists\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, k := range got {
		if strings.ContainsFunc(k, func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsGraphic(r) || unicode.IsSpace(r) }) {
			t.Errorf("key %q is not plain text", k)
		}
		if key, err := kvstore.ParseKey(k); err != nil || key.String() != k {
			t.Errorf("%s: %v", k, err)
		}
	}
	// One name is never the prefix of another's directory.
	if got := admin.must("get", "--prefix", "--keys-only", kvstore.Prefix(kvstore.State, c)+"nodes/n1"); len(got) != 2 {
		t.Errorf("nodes/n1…: %v", got)
	}
	if got := admin.must("get", "--keys-only", kvstore.Prefix(kvstore.State, c)+"nodes/n1"); len(got) != 1 {
		t.Errorf("nodes/n1: %v", got)
	}
	// What is text is text.
	if got := admin.must("get", "--print-value-only", private(kvstore.KindIncarnation).String()); !slices.Equal(got, []string{"an incarnation"}) {
		t.Errorf("incarnation: %q", got)
	}
	// A record copied with etcdctl is the same record.
	var answer struct {
		Kvs []struct{ Value []byte } `json:"kvs"`
	}
	text := strings.Join(admin.must("get", "-w", "json", state(kvstore.KindNode, "n1").String()), "")
	if err := json.Unmarshal([]byte(text), &answer); err != nil || len(answer.Kvs) != 1 {
		t.Fatalf("%s: %v", text, err)
	}
	if m, err := kvstore.Decode(state(kvstore.KindNode, "n1"), answer.Kvs[0].Value); err != nil || m.(*keyspacev1.Node).GetName() != "n1" {
		t.Errorf("through etcdctl: %v, %v", m, err)
	}
	if got := admin.must("get", "--prefix", "--count-only", "-w", "fields", kvstore.Prefix(kvstore.State, c)); !slices.ContainsFunc(got, func(l string) bool { return l == `"Count" : 7` }) {
		t.Errorf("count: %v", got)
	}

	// The rights are those of the certificate.
	agent := newCtl(t, e, pki.RoleAgent, "n1")
	if out, err := agent.run("get", "--prefix", kvstore.Prefix(kvstore.Private, c)); err == nil || !strings.Contains(out, "permission denied") {
		t.Errorf("an agent reads private/: %s, %v", out, err)
	}
	if out, err := admin.run("put", "elsewhere", "x"); err == nil || !strings.Contains(out, "permission denied") {
		t.Errorf("an administrator writes elsewhere: %s, %v", out, err)
	}
}
