// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import "testing"

// The backends of a stale cluster are the last resort, those of an expired one
// are none; both come back.
func TestAges(t *testing.T) {
	b := newBench(t)
	east, west := Source{Cluster: "east"}, Source{Cluster: "west"}
	b.UpsertService(east, service("10.9.0.1", true, true))
	b.UpsertService(west, service("10.8.0.1", true, true))
	b.UpsertSlice(east, slice("east-1", "10.1.0.5"))
	b.UpsertSlice(west, slice("west-1", "10.2.0.5"))
	b.want("10.9.0.1:80 = 1/10.1.0.5 2/10.2.0.5")
	b.SetAge("west", Stale)
	b.want("10.9.0.1:80 = 1/10.1.0.5")
	b.UpsertSlice(east, slice("east-1", "10.1.0.5 terminating"))
	b.want("10.9.0.1:80 = 1/10.1.0.5") // something else remains
	b.UpsertSlice(east, slice("east-1", "10.1.0.5 quarantined"))
	b.want("10.9.0.1:80 = 2/10.2.0.5") // nothing does
	if v, _ := b.Get("demo", "echo"); v.Backends[len(v.Backends)-1].StateName() != "stale" {
		t.Errorf("shown as %s", v.Backends[len(v.Backends)-1].StateName())
	}
	b.SetAge("west", Expired)
	b.want("10.9.0.1:80 =")
	if v, _ := b.Get("demo", "echo"); v.Backends[len(v.Backends)-1].StateName() != "expired" {
		t.Errorf("shown as %s", v.Backends[len(v.Backends)-1].StateName())
	}
	b.UpsertSlice(west, slice("west-1", "10.2.0.5", "10.2.0.6"))
	b.want("10.9.0.1:80 =") // what a resume brings counts once it has caught up
	b.SetAge("west", Fresh)
	b.want("10.9.0.1:80 = 2/10.2.0.5 2/10.2.0.6")
	if n := b.setAgeChanges("west", Fresh); n != 0 {
		t.Errorf("nothing changed, and %d services are looked at again", n)
	}
}

// setAgeChanges is how many services the next Publish looks at.
func (b *bench) setAgeChanges(cluster string, a Age) int {
	b.SetAge(cluster, a)
	return b.Publish(b.table)
}

func TestAgeNames(t *testing.T) {
	for _, a := range []Age{Fresh, Stale, Expired} {
		if AgeOf(a.String()) != a {
			t.Errorf("%d is %q is %d", a, a.String(), AgeOf(a.String()))
		}
	}
	if AgeOf("") != Fresh || AgeOf("mellow") != Fresh {
		t.Error("an unknown word is not fresh")
	}
}
