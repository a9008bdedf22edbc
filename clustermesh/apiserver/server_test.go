// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/cas"
	"github.com/hawser-mesh/hawser/loadbalancer"
	"github.com/hawser-mesh/hawser/policy/api"
)

func testConfig(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	any4 := netip.MustParseAddrPort("127.0.0.1:0")
	return Config{
		Cluster: "east", ClusterID: 1, ClusterBits: 8, DataDir: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "api.sock"),
		ListenEtcd: any4, ListenFederation: any4, TunnelPort: DefaultTunnelPort, UnsafeNoFsync: true,
		Replica: DefaultReplica, StaleAfter: DefaultStaleAfter, ExpireAfter: DefaultExpireAfter, IdentityGCInterval: 50 * time.Millisecond,
		PodCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		NodeCIDRs:    []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.101.0.0/29")},
		Log:          slog.New(slog.DiscardHandler),
	}
}

// start opens a server on a real etcd; its API is called directly.
func start(t *testing.T, cfg Config) *Server {
	t.Helper()
	s := newServer(cfg)
	t.Cleanup(s.close) // also if it opens by half: an etcd that outlives its directory ends the process
	if err := s.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func manifest(name string, annotations ...string) string {
	a := ""
	for _, x := range annotations {
		a += "    " + x + "\n"
	}
	if a != "" {
		a = "  annotations:\n" + a
	}
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata:\n  name: %s\n  namespace: demo\n%sspec:\n  selector: {app: %s}\n  ports: [{port: 80, targetPort: 8080}]\n", name, a, name)
}

func apply(t *testing.T, s *Server, source string) (*hawserv1.AppliedObject, error) {
	t.Helper()
	r, err := s.ApplyService(t.Context(), &hawserv1.ApplyServiceRequest{Source: source})
	if err != nil {
		return nil, err
	}
	return r.GetObjects()[0], nil
}

func service(t *testing.T, s *Server, name string) *hawserv1.ServiceInfo {
	t.Helper()
	r, err := s.ListServices(t.Context(), &hawserv1.ListServicesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range r.GetServices() {
		if x.GetName() == name {
			return x
		}
	}
	return nil
}

func TestServiceLife(t *testing.T) {
	s := start(t, testConfig(t))
	for _, want := range []string{actionCreated, actionUnchanged} {
		o, err := apply(t, s, manifest("echo"))
		if err != nil || o.GetAction() != want {
			t.Fatalf("apply: %v, %v, want %s", o, err, want)
		}
	}
	before := service(t, s, "echo")
	if before.GetId() != 1<<16+1 || len(before.GetVips()) != 1 || before.GetGlobal() {
		t.Fatalf("new service is %v", before)
	}

	// Sharing it moves the record below state/ and keeps number and address.
	if o, err := apply(t, s, manifest("echo", `hawser.io/global: "true"`)); err != nil || o.GetAction() != actionConfigured {
		t.Fatalf("share: %v, %v", o, err)
	}
	after := service(t, s, "echo")
	if after.GetId() != before.GetId() || after.GetVips()[0] != before.GetVips()[0] || !after.GetGlobal() {
		t.Errorf("after sharing: %v, before: %v", after, before)
	}
	for sub, want := range map[kvstore.Subtree]bool{kvstore.State: true, kvstore.Local: false} {
		if _, found, err := get[*keyspacev1.Service](t.Context(), s, s.serviceKey(sub, "demo", "echo")); err != nil || found != want {
			t.Errorf("record below %s/: %v, %v, want %v", sub, found, err, want)
		}
	}

	if _, err := s.DeleteService(t.Context(), &hawserv1.DeleteServiceRequest{Namespace: "demo", Name: "echo"}); err != nil {
		t.Fatal(err)
	}
	if service(t, s, "echo") != nil {
		t.Error("service is still listed after its deletion")
	}
	if _, err := apply(t, s, manifest("other")); err != nil || service(t, s, "other").GetId() != before.GetId() {
		t.Errorf("number of a deleted service is not free: %v, %v", service(t, s, "other"), err)
	}
	_, err := s.DeleteService(t.Context(), &hawserv1.DeleteServiceRequest{Namespace: "demo", Name: "echo"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("deleting it twice: %v", err)
	}
}

func TestServiceAddressesRunOutClearly(t *testing.T) {
	s := start(t, testConfig(t)) // a /29: six addresses
	for i := range 6 {
		if _, err := apply(t, s, manifest(fmt.Sprintf("s%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	_, err := apply(t, s, manifest("s6"))
	if status.Code(err) != codes.ResourceExhausted && !strings.Contains(fmt.Sprint(err), "in use") {
		t.Errorf("seventh service: %v", err)
	}
}

// A manifest's services are given what is free beside each other and beside those
// that others store meanwhile.
func TestManyServicesAtOnce(t *testing.T) {
	cfg := testConfig(t)
	cfg.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.101.0.0/24")}
	s := start(t, cfg)
	const manifests, each = 3, 20
	errs := make(chan error, manifests)
	for m := range manifests {
		var docs []string
		for i := range each {
			docs = append(docs, manifest(fmt.Sprintf("s%d-%d", m, i)))
		}
		go func() {
			_, err := s.ApplyService(context.Background(), &hawserv1.ApplyServiceRequest{Source: strings.Join(docs, "---\n")})
			errs <- err
		}()
	}
	for range manifests {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	r, err := s.ListServices(t.Context(), &hawserv1.ListServicesRequest{})
	if err != nil || len(r.GetServices()) != manifests*each {
		t.Fatalf("%d services, %v", len(r.GetServices()), err)
	}
	seen := map[string]string{}
	for _, x := range r.GetServices() {
		for _, k := range []string{fmt.Sprint(x.GetId()), x.GetVips()[0]} {
			if other := seen[k]; other != "" {
				t.Errorf("%s was given to %s and %s", k, other, x.GetName())
			}
			seen[k] = x.GetName()
		}
	}
	free, _ := loadbalancer.NextVIP(cfg.ServiceCIDRs[0], func(a netip.Addr) bool { return seen[a.String()] != "" })
	asks := strings.Replace(manifest("asks"), "spec:\n", "spec:\n  clusterIP: "+free.String()+"\n", 1)
	_, err = s.ApplyService(t.Context(), &hawserv1.ApplyServiceRequest{Source: manifest("first") + "---\n" + asks})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "belongs to service demo/first") {
		t.Errorf("an address that the service before it was given: %v", err)
	}
}

func TestServicesRace(t *testing.T) {
	s := start(t, testConfig(t))
	errs := make(chan error, 5)
	for i := range 5 {
		go func() {
			_, err := s.ApplyService(context.Background(), &hawserv1.ApplyServiceRequest{Source: manifest(fmt.Sprintf("s%d", i))})
			errs <- err
		}()
	}
	for range 5 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	seen := map[string]string{}
	r, err := s.ListServices(t.Context(), &hawserv1.ListServicesRequest{})
	if err != nil || len(r.GetServices()) != 5 {
		t.Fatalf("%d services, %v", len(r.GetServices()), err)
	}
	for _, x := range r.GetServices() {
		for _, k := range []string{fmt.Sprint(x.GetId()), x.GetVips()[0]} {
			if other := seen[k]; other != "" {
				t.Errorf("%s was given to %s and %s", k, other, x.GetName())
			}
			seen[k] = x.GetName()
		}
	}
}

func TestFixedClusterIP(t *testing.T) {
	s := start(t, testConfig(t))
	with := func(name, ip string) string {
		return strings.Replace(manifest(name), "spec:\n", "spec:\n  clusterIP: "+ip+"\n", 1)
	}
	if _, err := apply(t, s, with("a", "10.101.0.5")); err != nil || service(t, s, "a").GetVips()[0] != "10.101.0.5" {
		t.Fatalf("asked for 10.101.0.5: %v, %v", service(t, s, "a"), err)
	}
	for ip, want := range map[string]string{"10.101.0.5": "belongs to service demo/a", "10.9.0.1": "not in the cluster's service ranges"} {
		if _, err := apply(t, s, with("b", ip)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("clusterIP %s: %v, want %q", ip, err, want)
		}
	}
	if service(t, s, "b") != nil {
		t.Error("a refused service was stored")
	}
}

const rule = `[{"labels":[{"key":"name","value":"l3-rule"}],"endpointSelector":{"matchLabels":{"id":"app1"}},
"ingress":[{"fromEndpoints":[{"matchLabels":{"id":"app2"}}]}]}]`

func TestPolicyLife(t *testing.T) {
	s := start(t, testConfig(t))
	for i, step := range []struct{ source, action string }{
		{rule, actionCreated}, {rule, actionUnchanged}, {strings.Replace(rule, "app2", "app3", 1), actionConfigured},
	} {
		r, err := s.ApplyPolicy(t.Context(), &hawserv1.ApplyPolicyRequest{Source: step.source})
		if err != nil || r.GetObjects()[0].GetAction() != step.action {
			t.Fatalf("step %d: %v, %v, want %s", i, r, err, step.action)
		}
	}
	r, err := s.ListPolicies(t.Context(), &hawserv1.ListPoliciesRequest{})
	if err != nil || len(r.GetPolicies()) != 1 {
		t.Fatalf("listed %v, %v", r, err)
	}
	if p := r.GetPolicies()[0]; p.GetNamespace() != "_" || p.GetName() != "l3-rule" || p.GetRevision() != 2 || p.GetRules() != 1 {
		t.Errorf("listed %v", p)
	}
	if _, err := s.DeletePolicy(t.Context(), &hawserv1.DeletePolicyRequest{Namespace: "_", Name: "l3-rule"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.DeletePolicy(t.Context(), &hawserv1.DeletePolicyRequest{Namespace: "_", Name: "l3-rule"}); status.Code(err) != codes.NotFound {
		t.Errorf("deleting it twice: %v", err)
	}
}

// A policy that nobody can read is not a policy that is not there.
func TestUnreadablePolicyIsShown(t *testing.T) {
	s := start(t, testConfig(t))
	key := s.policyKey("demo", "closed").String()
	if _, err := s.kv.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(key, []byte("zzz"))}, nil); err != nil {
		t.Fatal(err)
	}
	r, err := s.ListPolicies(t.Context(), &hawserv1.ListPoliciesRequest{})
	if err != nil || len(r.GetPolicies()) != 1 || r.GetPolicies()[0].GetName() != "closed" || !strings.Contains(r.GetPolicies()[0].GetSelects(), "unreadable") {
		t.Errorf("listed %v, %v", r, err)
	}
	ps, err := s.policyProblems(t.Context())
	if err != nil || len(ps) != 1 || !strings.Contains(ps[0].GetProblem(), key) || !strings.Contains(ps[0].GetFix(), "policy delete -n demo closed") {
		t.Errorf("problems %v, %v", ps, err)
	}
	const text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: closed, namespace: demo}\nspec: {podSelector: {}}\n"
	applied, err := s.ApplyPolicy(t.Context(), &hawserv1.ApplyPolicyRequest{Source: text})
	if err != nil || applied.GetObjects()[0].GetAction() != actionConfigured {
		t.Errorf("written over: %v, %v", applied, err)
	}
	if _, err := s.kv.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(key, []byte("zzz"))}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.DeletePolicy(t.Context(), &hawserv1.DeletePolicyRequest{Namespace: "demo", Name: "closed"}); err != nil {
		t.Errorf("deleted: %v", err)
	}
	if r, err := s.ListPolicies(t.Context(), &hawserv1.ListPoliciesRequest{}); err != nil || len(r.GetPolicies()) != 0 {
		t.Errorf("after that listed %v, %v", r, err)
	}
}

// Writers of one policy at the same time do not overtake each other unseen: each
// change has a revision of its own.
func TestPoliciesRace(t *testing.T) {
	s := start(t, testConfig(t))
	const writers, each = 4, 10
	var g errgroup.Group
	for w := range writers {
		g.Go(func() error {
			for i := range each {
				source := strings.Replace(rule, "app2", fmt.Sprintf("app-%d-%d", w, i), 1)
				for {
					_, err := s.ApplyPolicy(t.Context(), &hawserv1.ApplyPolicyRequest{Source: source})
					if err == nil {
						break
					}
					if status.Code(err) != codes.Aborted {
						return err
					}
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	r, err := s.ListPolicies(t.Context(), &hawserv1.ListPoliciesRequest{})
	if err != nil || len(r.GetPolicies()) != 1 || r.GetPolicies()[0].GetRevision() != writers*each {
		t.Errorf("after %d changes: %v, %v", writers*each, r, err)
	}
}

// What was changed between reading and writing is not overwritten.
func TestPolicyConflict(t *testing.T) {
	s := start(t, testConfig(t))
	objects, err := api.Parse([]byte(rule))
	if err != nil {
		t.Fatal(err)
	}
	_, late, err := s.planPolicy(t.Context(), objects[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ApplyPolicy(t.Context(), &hawserv1.ApplyPolicyRequest{Source: strings.Replace(rule, "app2", "app3", 1)}); err != nil {
		t.Fatal(err)
	}
	err = apiError(s.commitPolicies(t.Context(), []cas.Write{*late}))
	if status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "try again") {
		t.Errorf("a late write: %v", err)
	}
	r, err := s.ListPolicies(t.Context(), &hawserv1.ListPoliciesRequest{})
	if err != nil || len(r.GetPolicies()) != 1 || !strings.Contains(r.GetPolicies()[0].GetSource(), "app3") {
		t.Errorf("stored %v, %v", r, err)
	}
}

func TestBadPolicyStoresNothing(t *testing.T) {
	s := start(t, testConfig(t))
	both := `[` + rule[1:len(rule)-1] + `,{"labels":[{"key":"name","value":"bad"}],"endpointSelector":{},"ingress":[{"fromNowhere":["10.0.0.0/8"]}]}]`
	_, err := s.ApplyPolicy(t.Context(), &hawserv1.ApplyPolicyRequest{Source: both})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "fromNowhere") {
		t.Errorf("got %v", err)
	}
	r, err := s.ListPolicies(t.Context(), &hawserv1.ListPoliciesRequest{})
	if err != nil || len(r.GetPolicies()) != 0 {
		t.Errorf("stored %v, %v", r, err)
	}
}

func TestRestartKeepsIncarnationAndCA(t *testing.T) {
	cfg := testConfig(t)
	first := newServer(cfg)
	t.Cleanup(first.close)
	if err := first.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	incarnation, ca := first.incarnation, first.creds.ca.Hash()
	first.close()
	second := start(t, cfg)
	if second.incarnation != incarnation || second.creds.ca.Hash() != ca {
		t.Error("a restart changed the incarnation or the CA")
	}
}

func TestMarkersWaitForPresentNodes(t *testing.T) {
	s := start(t, testConfig(t))
	presence := kvstore.NewKey(kvstore.Local, "east", kvstore.KindPresence, "n1")
	report := kvstore.NewKey(kvstore.Local, "east", kvstore.KindStatus, "n1")
	if _, err := s.putIfChanged(t.Context(), presence, &keyspacev1.Presence{Node: "n1"}); err != nil {
		t.Fatal(err)
	}
	if w, err := s.nodesWithoutStatus(t.Context()); err != nil || len(w) != 1 {
		t.Fatalf("waiting for %v, %v", w, err)
	}
	if _, err := s.putIfChanged(t.Context(), report, &keyspacev1.NodeStatus{Node: "n1", Incarnation: "another"}); err != nil {
		t.Fatal(err)
	}
	if w, err := s.nodesWithoutStatus(t.Context()); err != nil || len(w) != 1 {
		t.Errorf("a status of another incarnation counts: %v, %v", w, err)
	}
	if _, err := s.putIfChanged(t.Context(), report, &keyspacev1.NodeStatus{Node: "n1", Incarnation: s.incarnation}); err != nil {
		t.Fatal(err)
	}
	if w, err := s.nodesWithoutStatus(t.Context()); err != nil || len(w) != 0 {
		t.Errorf("still waiting for %v, %v", w, err)
	}
}

func TestConfigNamesEveryProblem(t *testing.T) {
	cfg := testConfig(t)
	cfg.Cluster, cfg.ClusterID = "East!", 0
	cfg.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.1.2.3/16")}
	cfg.NodeCIDRs = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}
	err := cfg.Validate()
	for _, want := range []string{"--cluster:", "--cluster-id 0", "has host bits; did you mean 10.1.0.0/16?", "overlaps"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
}

func TestManifestThatFailsHalfWayTellsWhatWasDone(t *testing.T) {
	s := start(t, testConfig(t))
	with := func(name, ip string) string {
		return strings.Replace(manifest(name), "spec:\n", "spec:\n  clusterIP: "+ip+"\n", 1)
	}
	both := with("m1", "10.101.0.2") + "---\n" + with("m2", "10.101.0.2")
	_, err := s.ApplyService(t.Context(), &hawserv1.ApplyServiceRequest{Source: both})
	if st := status.Convert(err); st.Code() != codes.FailedPrecondition || strings.Contains(st.Message(), "rpc error") ||
		!strings.Contains(st.Message(), "done before it: Service demo/m1 created") {
		t.Errorf("apply: %v", err)
	}
	_, err = s.DeleteService(t.Context(), &hawserv1.DeleteServiceRequest{Source: manifest("m1") + "---\n" + manifest("m2")})
	if status.Code(err) != codes.NotFound || service(t, s, "m1") == nil {
		t.Errorf("delete of one that is there and one that is not: %v; the first is %v", err, service(t, s, "m1"))
	}
}
