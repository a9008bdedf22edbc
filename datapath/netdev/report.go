// SPDX-License-Identifier: Apache-2.0

package netdev

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxReport bounds each list of a Report.
const maxReport = 10_000

// Report is what the kernel has in the calling thread's network namespace.
type Report struct {
	Links  []LinkReport
	Routes []RouteReport
}

// LinkReport is a device.
type LinkReport struct {
	Name, Type, MAC, State, Flags string
	Index, MTU                    int
	Addresses                     []string
	Filters                       []string // of tc, those of clsact
}

// RouteReport is a route of any table but the local one.
type RouteReport struct {
	Destination, Gateway, Device, Source, Type string
	Table, Protocol                            int
}

// ReadReport reads devices and routes; what could not be read is in the error,
// beside the rest.
func ReadReport() (Report, error) {
	var r Report
	links, err := netlink.LinkList()
	errs := []error{wrap("list links", err)}
	names := map[int]string{}
	for _, l := range links[:min(len(links), maxReport)] {
		a := l.Attrs()
		names[a.Index] = a.Name
		one := LinkReport{
			Name: a.Name, Type: l.Type(), MAC: a.HardwareAddr.String(), State: a.OperState.String(), Flags: a.Flags.String(), Index: a.Index, MTU: a.MTU,
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		errs = append(errs, wrap("list addresses of "+a.Name, err))
		for _, addr := range addrs {
			one.Addresses = append(one.Addresses, addr.IPNet.String())
		}
		for parent, way := range map[uint32]string{netlink.HANDLE_MIN_INGRESS: "ingress", netlink.HANDLE_MIN_EGRESS: "egress"} {
			filters, err := netlink.FilterList(l, parent)
			if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) {
				errs = append(errs, wrap("list filters of "+a.Name, err))
			}
			for _, f := range filters {
				name := ""
				if b, ok := f.(*netlink.BpfFilter); ok {
					name = " " + b.Name
				}
				one.Filters = append(one.Filters, fmt.Sprintf("tc %s: %s%s priority %d", way, f.Type(), name, f.Attrs().Priority))
			}
		}
		r.Links = append(r.Links, one)
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	errs = append(errs, wrap("list routes", err))
	for _, route := range routes[:min(len(routes), maxReport)] {
		if route.Table == unix.RT_TABLE_LOCAL {
			continue
		}
		one := RouteReport{Device: names[route.LinkIndex], Table: route.Table, Protocol: int(route.Protocol), Type: routeType(route.Type)}
		if route.Dst != nil {
			one.Destination = route.Dst.String()
		}
		if route.Gw != nil {
			one.Gateway = route.Gw.String()
		}
		if route.Src != nil {
			one.Source = route.Src.String()
		}
		r.Routes = append(r.Routes, one)
	}
	if n := max(len(links), len(routes)); n > maxReport {
		errs = append(errs, fmt.Errorf("%d devices or routes; only the first %d are shown", n, maxReport))
	}
	return r, errors.Join(errs...)
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

func routeType(t int) string {
	names := map[int]string{unix.RTN_UNICAST: "unicast", unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit", unix.RTN_MULTICAST: "multicast", unix.RTN_ANYCAST: "anycast", unix.RTN_THROW: "throw"}
	if n, ok := names[t]; ok {
		return n
	}
	return strings.TrimSpace(fmt.Sprintf("type %d", t))
}
