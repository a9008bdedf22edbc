// SPDX-License-Identifier: Apache-2.0

package etcd_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

func TestAccessTable(t *testing.T) {
	e := etcdtest.Start(t)
	c := e.Cluster
	clients := map[string]*etcd.Client{
		"agent":     e.Agent(t, "n1"),
		"apiserver": e.APIServer(t),
		"admin":     e.Client(t, pki.RoleAdmin, "ada"),
	}
	state, local, private := kvstore.Prefix(kvstore.State, c), kvstore.Prefix(kvstore.Local, c), kvstore.Prefix(kvstore.Private, c)
	peer := kvstore.Prefix(kvstore.State, "peer")
	for _, x := range []struct {
		key                    string
		agentReads, agentWrite bool
		othersWrite            bool
	}{
		{state + "cluster", true, false, true},
		{state + "nodes/n1", true, true, true},
		{state + "identities/id/65537", true, true, true},
		{state + "identities/labels/ab", true, true, true},
		{state + "ips/10.0.0.1%2F32", true, true, true},
		{state + "vteps/10.0.0.0%2F24", true, true, true},
		{state + "slices/ns/s/n1", true, true, true},
		{state + "services/ns/s", true, false, true},
		{state + "serviceids/65537", true, false, true},
		{state + "health/n1", true, false, true},
		{state + "nodesx/n1", true, false, true},
		{peer + "nodes/n1", true, false, true},
		{peer + "ips/10.0.0.1%2F32", true, false, true},
		{local + "refs/65537/n1", true, true, true},
		{local + "slices/ns/s/n1", true, true, true},
		{local + "presence/n1", true, true, true},
		{local + "status/n1", true, true, true},
		{local + "policies/_/p", true, false, true},
		{local + "services/ns/s", true, false, true},
		{local + "retired/65537", true, false, true},
		{local + "peers/peer", true, false, true},
		{local + "nodeconfig/n1", true, false, true},
		{local + "synced/peer/nodes", true, false, true},
		{kvstore.Prefix(kvstore.Local, "peer") + "refs/65537/n1", false, false, false},
		{private + "incarnation", false, false, true},
		{private + "peers/peer", false, false, true},
		{private + "tokens/t", false, false, true},
		{kvstore.Prefix(kvstore.Private, "peer") + "tokens/t", false, false, false},
		{"elsewhere", false, false, false},
	} {
		for name, client := range clients {
			reads, writes := x.othersWrite, x.othersWrite
			if name == "agent" {
				reads, writes = x.agentReads, x.agentWrite
			}
			_, _, err := client.Get(t.Context(), x.key)
			expect(t, name+" reads "+x.key, reads, err)
			_, err = client.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(x.key, []byte("v"))}, nil)
			expect(t, name+" writes "+x.key, writes, err)
			_, err = client.Txn(t.Context(), nil, []kvstore.Op{kvstore.Delete(x.key)}, nil)
			expect(t, name+" deletes "+x.key, writes, err)
		}
	}
	_, err := clients["agent"].List(t.Context(), kvstore.Root, "", 0, 0)
	expect(t, "agent lists everything", false, err)
	err = clients["agent"].Watch(t.Context(), private, 1, func(kvstore.WatchBatch) error { return nil })
	expect(t, "agent watches private/", false, err)
	_, err = clients["agent"].Txn(t.Context(), nil, []kvstore.Op{{Kind: kvstore.OpDelete, Key: state, Prefix: true}}, nil)
	expect(t, "agent deletes its cluster", false, err)
}

func expect(t *testing.T, what string, allowed bool, err error) {
	t.Helper()
	if allowed && err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if !allowed && !errors.Is(err, kvstore.ErrDenied) {
		t.Errorf("%s: %v, want denied", what, err)
	}
}

func TestAgentAllocates(t *testing.T) {
	e := etcdtest.Start(t)
	agent := e.Agent(t, "n1")
	id := kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIdentity, "65537").String()
	byLabels := kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIdentityLabels, "ab").String()
	ref := kvstore.NewKey(kvstore.Local, e.Cluster, kvstore.KindRef, "65537", "n1").String()
	retired := kvstore.NewKey(kvstore.Local, e.Cluster, kvstore.KindRetired, "65537").String()
	// retired/ may only be read: comparing takes no more.
	free := []kvstore.Cmp{kvstore.Absent(byLabels), kvstore.Absent(id), kvstore.Absent(retired)}
	take := []kvstore.Op{kvstore.Put(id, []byte("i")), kvstore.Put(byLabels, []byte("l")), kvstore.Put(ref, nil)}
	for i, want := range []bool{true, false} {
		res, err := agent.Txn(t.Context(), free, take, []kvstore.Op{kvstore.Read(byLabels)})
		if err != nil || res.Succeeded != want {
			t.Fatalf("allocation %d: %+v, %v; want success %v", i, res, err, want)
		}
	}
	// The leader's guard against references: a compare over a range.
	refs := kvstore.KindPrefix(kvstore.Local, e.Cluster, kvstore.KindRef) + "65537/"
	guard := []kvstore.Cmp{{Key: refs, Prefix: true, Target: kvstore.CmpAbsent}}
	api := e.APIServer(t)
	collect := []kvstore.Op{kvstore.Delete(id), kvstore.Delete(byLabels)}
	if res, err := api.Txn(t.Context(), guard, collect, nil); err != nil || res.Succeeded {
		t.Fatalf("collected a number in use: %+v, %v", res, err)
	}
	if _, err := agent.Txn(t.Context(), nil, []kvstore.Op{kvstore.Delete(ref)}, nil); err != nil {
		t.Fatal(err)
	}
	if res, err := api.Txn(t.Context(), guard, collect, nil); err != nil || !res.Succeeded {
		t.Fatalf("unused number not collected: %+v, %v", res, err)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	e := etcdtest.Start(t)
	other, err := etcdtest.New(t.Context(), t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Server.Close()
	for name, from := range map[string]*etcdtest.Etcd{"client of another CA": other} {
		// Its CA signs for another cluster, so it trusts another server,
		// too: both ends refuse.
		c := from.ClientAt(t, e.Server.Endpoint(), pki.RoleAgent, "n1")
		ctx, cancel := contextFor(t, shortTry)
		defer cancel()
		if _, _, err := c.Get(ctx, kvstore.SubtreePrefix(kvstore.State)); err == nil {
			t.Errorf("%s reads", name)
		}
	}
	// A certificate of the right CA whose common name is no user.
	leaf, err := e.CA.Issue(pki.Request{Role: pki.RoleAgent, Name: "n1"}, farFuture(t))
	if err != nil {
		t.Fatal(err)
	}
	files, err := leaf.Save(t.TempDir(), "agent")
	if err != nil {
		t.Fatal(err)
	}
	tls, err := files.ClientTLS(nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := etcd.NewClient(etcd.ClientConfig{Endpoints: []string{e.Server.Endpoint()}, TLS: tls, Timeout: 4 * shortTry}) // the handshake has its time
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, _, err := c.Get(t.Context(), kvstore.SubtreePrefix(kvstore.State)); err == nil {
		t.Error("a certificate that is not valid yet reads")
	} else if !strings.Contains(err.Error(), "is valid from") {
		t.Errorf("%v does not say that the certificate is why", err)
	}
}
