// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"errors"
	"fmt"
	"net/netip"

	"go4.org/netipx"

	"github.com/hawser-mesh/hawser/kvstore"
)

// ErrExhausted is wrapped by errors that say that a range is full.
var ErrExhausted = errors.New("none is free")

// NextServiceID is the lowest free number of a cluster: its id, then 16 bits
// from 1 on. The caller makes it its own in a transaction, and asks again when
// it lost a race.
func NextServiceID(cluster uint32, used func(uint32) bool) (uint32, error) {
	if cluster == 0 || cluster >= 1<<(32-kvstore.ServiceIDBits) {
		return 0, fmt.Errorf("allocate service number: cluster id %d is not valid", cluster)
	}
	base := cluster << kvstore.ServiceIDBits
	for id := base + 1; id < base+1<<kvstore.ServiceIDBits; id++ {
		if !used(id) {
			return id, nil
		}
	}
	return 0, fmt.Errorf("allocate service number in %d–%d: %w", base+1, base+1<<kvstore.ServiceIDBits-1, ErrExhausted)
}

// NextVIP is the lowest free address of a service range. In IPv4 its first and
// last are never given out.
func NextVIP(prefix netip.Prefix, used func(netip.Addr) bool) (netip.Addr, error) {
	if !prefix.IsValid() {
		return netip.Addr{}, errors.New("allocate service address: no service range is configured")
	}
	r := netipx.RangeOfPrefix(prefix.Masked())
	for a := r.From().Next(); a.IsValid() && prefix.Contains(a); a = a.Next() {
		if a.Is4() && a == r.To() {
			break
		}
		if !used(a) {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("allocate service address in %s: %w", prefix, ErrExhausted)
}

// CheckVIP says why an address that a manifest asks for cannot be a service's,
// or nil. Whether it is free is another question.
func CheckVIP(prefixes []netip.Prefix, a netip.Addr) error {
	for _, p := range prefixes {
		r := netipx.RangeOfPrefix(p.Masked())
		if !p.Contains(a) {
			continue
		}
		if a == r.From() || a.Is4() && a == r.To() {
			return fmt.Errorf("address %s: first and last of %s are not given out", a, p)
		}
		return nil
	}
	return fmt.Errorf("address %s: not in the cluster's service ranges %v", a, prefixes)
}
