// SPDX-License-Identifier: Apache-2.0

// Package ipam hands out the addresses of a node's pod CIDR.
//
// A Pool lives in memory: whoever owns the workloads stores their addresses and
// passes them to New after a restart. Which CIDR a node has is decided
// elsewhere.
package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"go4.org/netipx"
)

// ErrFull says that a pool has no free address.
var ErrFull = errors.New("no free address")

// ErrInUse says that an address already has another owner.
var ErrInUse = errors.New("address is in use")

// Pool is the addresses of one prefix and who has them. It is safe for
// concurrent use.
type Pool struct {
	prefix      netip.Prefix
	gateway     netip.Addr
	first, last netip.Addr // first and last address that may be handed out

	mu     sync.Mutex
	owners map[netip.Addr]string
	next   netip.Addr // where the next search starts
}

// New makes a pool of prefix, IPv4 or IPv6, in which used (address to owner) is
// taken. The network address, the gateway (the first address after it) and, in
// IPv4, the broadcast address are never handed out. It refuses prefixes that
// leave nothing to hand out and used addresses outside the prefix.
func New(prefix netip.Prefix, used map[netip.Addr]string) (*Pool, error) {
	if !prefix.IsValid() || prefix.Addr().Is4In6() {
		return nil, fmt.Errorf("address pool %q: not a prefix", prefix)
	}
	prefix = prefix.Masked()
	p := &Pool{prefix: prefix, owners: make(map[netip.Addr]string, len(used))}
	p.gateway = prefix.Addr().Next()
	p.first = p.gateway.Next()
	p.last = netipx.PrefixLastIP(prefix)
	if prefix.Addr().Is4() {
		p.last = p.last.Prev()
	}
	if !prefix.Contains(p.first) || p.last.Less(p.first) {
		return nil, fmt.Errorf("address pool %s: too small, nothing is left beside network, gateway and broadcast", prefix)
	}
	p.next = p.first
	var errs []error
	for a, owner := range used {
		if err := p.Claim(a, owner); err != nil {
			errs = append(errs, err)
		}
	}
	return p, errors.Join(errs...)
}

// Prefix is the prefix that the pool hands out of.
func (p *Pool) Prefix() netip.Prefix { return p.prefix }

// Gateway is the address of the prefix that no workload gets.
func (p *Pool) Gateway() netip.Addr { return p.gateway }

// Allocate takes a free address for owner. Addresses are handed out in rising
// order and a freed one comes last, so that peers forget it before it returns.
// The error is ErrFull when there is none.
func (p *Pool) Allocate(owner string) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// Among len(owners)+1 consecutive addresses one is free, so the search is
	// bounded also in a /64.
	a := p.next
	for range len(p.owners) + 1 {
		if _, taken := p.owners[a]; !taken {
			p.owners[a] = owner
			p.next = p.after(a)
			return a, nil
		}
		if a = p.after(a); a == p.next {
			break
		}
	}
	return netip.Addr{}, fmt.Errorf("allocate address for %s in %s: %w (%d in use)", owner, p.prefix, ErrFull, len(p.owners))
}

func (p *Pool) after(a netip.Addr) netip.Addr {
	if a == p.last {
		return p.first
	}
	return a.Next()
}

// Claim takes the given address for owner; claiming it again for the same owner
// is no error. The error is ErrInUse when somebody else has it.
func (p *Pool) Claim(a netip.Addr, owner string) error {
	if a.Less(p.first) || p.last.Less(a) || !p.prefix.Contains(a) {
		return fmt.Errorf("claim address %s for %s: not one of %s (%s to %s)", a, owner, p.prefix, p.first, p.last)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if has, taken := p.owners[a]; taken && has != owner {
		return fmt.Errorf("claim address %s for %s: %w by %s", a, owner, ErrInUse, has)
	}
	p.owners[a] = owner
	return nil
}

// Release gives an address back. Releasing a free address does nothing.
func (p *Pool) Release(a netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.owners, a)
}

// Used is the number of addresses that are taken.
func (p *Pool) Used() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.owners)
}

// Owner is who has an address.
func (p *Pool) Owner(a netip.Addr) (owner string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	owner, ok = p.owners[a]
	return owner, ok
}
