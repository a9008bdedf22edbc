// SPDX-License-Identifier: Apache-2.0

package loadbalancer

// Age is what the age of a cluster's records makes of its backends.
type Age uint8

// Ages of a cluster's records.
const (
	Fresh   Age = iota
	Stale       // used only where no fresh backend takes connections
	Expired     // not used
)

// AgeOf is the age that a PeerView names; a word that is not known is fresh.
func AgeOf(data string) Age {
	switch data {
	case Stale.String():
		return Stale
	case Expired.String():
		return Expired
	}
	return Fresh
}

// String is the age as a PeerView names it.
func (a Age) String() string {
	switch a {
	case Stale:
		return "stale"
	case Expired:
		return "expired"
	}
	return "fresh"
}

// SetAge tells how old what we have of a cluster is.
func (d *Desired) SetAge(cluster string, a Age) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ages[cluster] == a {
		return
	}
	if a == Fresh {
		delete(d.ages, cluster)
	} else {
		d.ages[cluster] = a
	}
	d.touchCluster(cluster)
}

// Age is how old what we have of a cluster is, as SetAge told.
func (d *Desired) Age(cluster string) Age {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ages[cluster]
}
