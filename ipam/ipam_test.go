// SPDX-License-Identifier: Apache-2.0

package ipam_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/ipam"
)

func TestAllocatesEveryUsableAddressOnce(t *testing.T) {
	for _, c := range []struct {
		prefix      string
		first, last string
		count       int
	}{
		{"10.1.1.0/29", "10.1.1.2", "10.1.1.6", 5},
		{"10.1.1.9/29", "10.1.1.10", "10.1.1.14", 5}, // host bits are ignored
		{"10.1.1.0/30", "10.1.1.2", "10.1.1.2", 1},
		{"fd00:1::/125", "fd00:1::2", "fd00:1::7", 6},
	} {
		t.Run(c.prefix, func(t *testing.T) {
			p, err := ipam.New(netip.MustParsePrefix(c.prefix), nil)
			if err != nil {
				t.Fatal(err)
			}
			seen := map[netip.Addr]bool{}
			var got []netip.Addr
			for i := range c.count {
				a, err := p.Allocate(fmt.Sprint("pod", i))
				if err != nil {
					t.Fatalf("allocation %d: %v", i, err)
				}
				if seen[a] {
					t.Fatalf("%s handed out twice", a)
				}
				seen[a] = true
				got = append(got, a)
			}
			if got[0].String() != c.first || got[len(got)-1].String() != c.last {
				t.Errorf("handed out %s to %s, want %s to %s", got[0], got[len(got)-1], c.first, c.last)
			}
			if _, err := p.Allocate("one-more"); !errors.Is(err, ipam.ErrFull) {
				t.Errorf("full pool answered %v, want ErrFull", err)
			} else if !strings.Contains(err.Error(), "one-more") || !strings.Contains(err.Error(), p.Prefix().String()) {
				t.Errorf("error %q names neither who asked nor the pool", err)
			}
			p.Release(got[0])
			if a, err := p.Allocate("again"); err != nil || a != got[0] {
				t.Errorf("after release: %s, %v; want %s", a, err, got[0])
			}
		})
	}
}

func TestFreedAddressComesLast(t *testing.T) {
	p, err := ipam.New(netip.MustParsePrefix("10.1.1.0/29"), nil)
	if err != nil {
		t.Fatal(err)
	}
	first, _ := p.Allocate("a")
	p.Release(first)
	for range 4 {
		if a, _ := p.Allocate("b"); a == first {
			t.Fatalf("%s was handed out again while others were free", a)
		}
	}
	if a, err := p.Allocate("c"); err != nil || a != first {
		t.Errorf("got %s, %v; want the freed %s", a, err, first)
	}
}

func TestRestoreAndClaim(t *testing.T) {
	a2, a3 := netip.MustParseAddr("10.1.1.2"), netip.MustParseAddr("10.1.1.3")
	p, err := ipam.New(netip.MustParsePrefix("10.1.1.0/24"), map[netip.Addr]string{a2: "x", a3: "y"})
	if err != nil {
		t.Fatal(err)
	}
	if a, _ := p.Allocate("z"); a.String() != "10.1.1.4" {
		t.Errorf("allocated %s over the restored ones", a)
	}
	if err := p.Claim(a2, "x"); err != nil {
		t.Errorf("claiming one's own address again: %v", err)
	}
	if err := p.Claim(a2, "other"); !errors.Is(err, ipam.ErrInUse) {
		t.Errorf("claiming another's address: %v, want ErrInUse", err)
	}
	for _, bad := range []string{"10.1.1.0", "10.1.1.1", "10.1.1.255", "10.1.2.2", "fd00::2"} {
		if err := p.Claim(netip.MustParseAddr(bad), "x"); err == nil {
			t.Errorf("%s may not be claimed", bad)
		}
	}
	if p.Used() != 3 {
		t.Errorf("%d in use, want 3", p.Used())
	}
}

func TestRefusesPrefixWithoutRoom(t *testing.T) {
	for _, s := range []string{"10.1.1.0/31", "10.1.1.0/32", "fd00::/127", "fd00::/128"} {
		if _, err := ipam.New(netip.MustParsePrefix(s), nil); err == nil {
			t.Errorf("%s was accepted", s)
		}
	}
}
