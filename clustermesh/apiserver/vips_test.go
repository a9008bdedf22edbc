// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

func vipKey(ip string) kvstore.Key {
	return kvstore.NewKey(kvstore.Private, "east", kvstore.KindVIP, ip)
}

func vipOf(t *testing.T, s *Server, name string) string {
	t.Helper()
	r, found, err := s.storedService(t.Context(), "demo", name)
	if err != nil || !found || len(r.msg.GetVips()) != 1 {
		t.Fatalf("service %s: %v, %t, %v", name, r.msg, found, err)
	}
	return r.msg.GetVips()[0]
}

// An address without an owner's record is still its service's, and gets its
// record back; one that has lost its service is free after a while.
func TestServiceAddressOwners(t *testing.T) {
	s := start(t, testConfig(t))
	at := time.Unix(1e9, 0)
	v := &vipKeeper{s: s, now: func() time.Time { return at }}
	step := func(d time.Duration) {
		t.Helper()
		at = at.Add(d)
		if err := v.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	owner := func(ip string) string {
		t.Helper()
		r, _, err := get[*keyspacev1.VIPOwner](t.Context(), s, vipKey(ip))
		if err != nil {
			t.Fatal(err)
		}
		return r.msg.GetName()
	}
	for _, name := range []string{"web", "two"} {
		if _, err := apply(t, s, manifest(name)); err != nil {
			t.Fatal(err)
		}
	}
	web := vipOf(t, s, "web")
	if _, err := s.kv.Txn(t.Context(), nil, []kvstore.Op{kvstore.Delete(vipKey(web).String())}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := apply(t, s, manifest("three")); err != nil || vipOf(t, s, "three") == web {
		t.Fatalf("three got %s, which web has; %v", vipOf(t, s, "three"), err)
	}
	step(0)
	if got := owner(web); got != "web" {
		t.Errorf("%s belongs to %q", web, got)
	}
	s.write(t, vipKey("10.101.0.6"), &keyspacev1.VIPOwner{Ip: "10.101.0.6", Namespace: "demo", Name: "lost"})
	s.write(t, vipKey("10.101.0.5"), &keyspacev1.VIPOwner{Ip: "10.101.0.5", Namespace: "demo", Name: "web"}) // web has another
	step(0)
	step(DefaultDepartedAfter - time.Second)
	if a, b := owner("10.101.0.6"), owner("10.101.0.5"); a != "lost" || b != "web" {
		t.Errorf("freed early: %q, %q", a, b)
	}
	step(time.Second)
	if a, b, c := owner("10.101.0.6"), owner("10.101.0.5"), owner(web); a != "" || b != "" || c != "web" {
		t.Errorf("owners are %q, %q, %q", a, b, c)
	}
	if _, err := s.DeleteService(t.Context(), &hawserv1.DeleteServiceRequest{Namespace: "demo", Name: "web"}); err != nil || owner(web) != "" {
		t.Errorf("%s belongs to %q after its service was deleted; %v", web, owner(web), err)
	}
}

// However services come and go, no two have one address.
func TestServiceAddressesAreNeverGivenTwice(t *testing.T) {
	s := start(t, testConfig(t))
	v := &vipKeeper{s: s, now: time.Now}
	for i := range 12 {
		if i >= 4 {
			if _, err := s.DeleteService(t.Context(), &hawserv1.DeleteServiceRequest{Namespace: "demo", Name: fmt.Sprintf("s%d", i-4)}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := apply(t, s, manifest(fmt.Sprintf("s%d", i))); err != nil {
			t.Fatal(err)
		}
		if err := v.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		services, err := s.ownServices(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]string{}
		for _, r := range services {
			ip := r.msg.GetVips()[0]
			if other, twice := seen[ip]; twice {
				t.Fatalf("%s has %s, and so has %s", r.msg.GetName(), ip, other)
			}
			seen[ip] = r.msg.GetName()
		}
	}
}
