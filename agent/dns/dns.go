// SPDX-License-Identifier: Apache-2.0

// Package dns is a node's name server: services and workloads of the mesh by
// name and by address (zone.go, reverse.go), and everything else by the host's
// own resolvers (forward.go).
//
// Start with Server. What the names mean comes from a Directory, which the agent
// makes of the records that it reads. The server keeps nothing: no cache, no
// state that a restart would lose. Out of scope: DNSSEC, zone transfers, dynamic
// updates, and service records (SRV).
package dns

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
)

// Zone is below which the mesh's names are.
const Zone = "mesh"

// Port is where resolvers look for a name server.
const Port = 53

// Directory is what the names mean at this moment. Names are lower case. It is
// used by many goroutines at once and must not block.
type Directory interface {
	// Service is a service of the own cluster: its addresses, none of a headless
	// one.
	Service(namespace, name string) (vips []netip.Addr, ok bool)
	// Backends are those of a service of the own cluster that may take new
	// connections, in all clusters; of those that a name means, the ones of the
	// lowest rank are answered.
	Backends(namespace, name string) []Backend
	// Workload are the addresses of a workload of a cluster; "" is the own one.
	Workload(cluster, namespace, name string) []netip.Addr
	// Cluster reports whether there is such a cluster, the own one included.
	Cluster(name string) bool
	// Namespace reports whether any name is in a namespace.
	Namespace(name string) bool
	// Names are what an address is called, without the zone: echo.demo.
	Names(a netip.Addr) []string
	// Inside reports whether an address is in a range of the mesh, so that nobody
	// else could know its name.
	Inside(a netip.Addr) bool
	// Known says whether everything of the own cluster has been read, and of all
	// clusters: before, what is not found may exist.
	Known() (own, all bool)
}

// Backend is one address behind a service.
type Backend struct {
	Cluster  string
	Workload string // name, without namespace
	Addr     netip.Addr
	Rank     int  // the better the lower
	Own      bool // of the own cluster
}

// Config is what a Server is told.
type Config struct {
	// Listen is where the server answers, over UDP and TCP.
	Listen netip.AddrPort
	// Upstreams answer for all names outside the mesh, in order of preference;
	// without any, such names are refused.
	Upstreams []netip.AddrPort
	// Allowed says who may ask. Others get no answer at all: a name server that
	// answers everybody is a weapon.
	Allowed func(netip.Addr) bool
	Names   Directory
	Log     *slog.Logger
}

// Validate says what is wrong, all problems joined.
func (c *Config) Validate() error {
	var errs []error
	if !c.Listen.IsValid() || c.Listen.Addr().IsUnspecified() {
		errs = append(errs, fmt.Errorf("listen on %s: name one address of this node", c.Listen))
	}
	for _, u := range c.Upstreams {
		if !u.IsValid() || u.Port() == 0 || u.Addr().IsUnspecified() {
			errs = append(errs, fmt.Errorf("upstream %s: must be ADDRESS:PORT of a resolver", u))
		}
	}
	if slices.Contains(c.Upstreams, c.Listen) {
		errs = append(errs, fmt.Errorf("upstream %s: is this very server; name another resolver", c.Listen))
	}
	if c.Allowed == nil || c.Names == nil || c.Log == nil {
		errs = append(errs, errors.New("who may ask, the names and a log are all required"))
	}
	return errors.Join(errs...)
}
