// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/hawser-mesh/hawser/internal/table"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

const (
	// lookupEvery is how often names are looked up again.
	lookupEvery   = 30 * time.Second
	lookupTimeout = 5 * time.Second
)

// outside is where the node's etcd and API server are: addresses that must stay
// outside of the tunnel, or nobody can tell this host anything any more.
type outside struct {
	addrs *table.Table[netip.Addr, string] // "etcd" or "API server"

	log    *slog.Logger
	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
	fixed  map[netip.Addr]string
	names  map[string]string
	found  map[string][]netip.Addr // what each name was when it was looked up last
	failed map[string]bool         // the last time; addresses of before still count
}

// newOutside takes endpoints as etcd's client does. lookup is a resolver's
// LookupNetIP.
func newOutside(etcds, apiServers []string, lookup func(context.Context, string, string) ([]netip.Addr, error), log *slog.Logger) *outside {
	o := &outside{
		addrs: table.New[netip.Addr, string]("outside", func(a, b string) bool { return a == b }), log: log, lookup: lookup,
		fixed: map[netip.Addr]string{}, names: map[string]string{}, found: map[string][]netip.Addr{}, failed: map[string]bool{},
	}
	note := func(endpoints []string, what string) {
		for _, e := range endpoints {
			host := etcd.HostOf(e)
			if at, err := netip.ParseAddr(host); err == nil {
				o.fixed[plain(at)] = what
			} else if host != "" {
				o.names[host] = what
			}
		}
	}
	note(apiServers, "API server")
	note(etcds, "etcd")
	o.tell()
	return o
}

// plain is an address as prefixes contain it.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// run keeps the addresses of names up to date until the context ends.
func (o *outside) run(ctx context.Context) error {
	if len(o.names) == 0 {
		return nil
	}
	tick := time.NewTicker(lookupEvery)
	defer tick.Stop()
	for {
		o.resolve(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// resolve looks every name up once. One that is not found keeps its addresses.
func (o *outside) resolve(ctx context.Context) {
	for name := range o.names {
		lctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		addrs, err := o.lookup(lctx, "ip", name)
		cancel()
		if err != nil && !o.failed[name] && ctx.Err() == nil {
			o.log.Warn("look up what must stay outside of the mesh's routes; its former addresses count", "name", name, "addresses", o.found[name], "error", err)
		}
		if o.failed[name] = err != nil; err == nil {
			o.found[name] = addrs
		}
	}
	o.tell()
}

func (o *outside) tell() {
	want := map[netip.Addr]string{}
	for name, addrs := range o.found {
		for _, a := range addrs {
			want[plain(a)] = o.names[name]
		}
	}
	for a, what := range o.fixed {
		want[a] = what
	}
	have, _ := o.addrs.Snapshot()
	for a := range have {
		if _, ok := want[a]; !ok {
			o.addrs.Delete(a)
		}
	}
	for a, what := range want {
		o.addrs.Set(a, what)
	}
}
