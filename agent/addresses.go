// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"

	"github.com/hawser-mesh/hawser/ipam"
)

// pools hand out the addresses of this node's endpoints: one of each family that
// the node has a range of. The first address of the IPv6 range, which no endpoint
// gets, is the node's own.
type pools struct {
	v4, v6 *ipam.Pool // v6 is nil without a range
}

func newPools(cfg *Config) (*pools, error) {
	v4, err := ipam.New(cfg.PodCIDR, nil)
	if err != nil || !cfg.PodCIDR6.IsValid() {
		return &pools{v4: v4}, err
	}
	v6, err := ipam.New(cfg.PodCIDR6, nil)
	return &pools{v4: v4, v6: v6}, err
}

// all are the pools that the node has.
func (p *pools) all() []*ipam.Pool {
	if p.v6 == nil {
		return []*ipam.Pool{p.v4}
	}
	return []*ipam.Pool{p.v4, p.v6}
}

// allocate takes free addresses for owner: of every family, or none.
func (p *pools) allocate(owner string) (addr, addr6 netip.Addr, err error) {
	if addr, err = p.v4.Allocate(owner); err != nil || p.v6 == nil {
		return addr, addr6, err
	}
	if addr6, err = p.v6.Allocate(owner); err != nil {
		p.v4.Release(addr)
	}
	return addr, addr6, err
}

// claim takes the addresses that an endpoint had before a restart, all or none.
// One with an IPv6 address is for a node with a range of it.
func (p *pools) claim(r *record) error {
	if err := p.v4.Claim(r.Addr, r.key()); err != nil || !r.Addr6.IsValid() {
		return err
	}
	err := p.v6.Claim(r.Addr6, r.key())
	if err != nil {
		p.v4.Release(r.Addr)
	}
	return err
}

// owns reports whether an endpoint's addresses are its own.
func (p *pools) owns(r *record) bool {
	owner, _ := p.v4.Owner(r.Addr)
	return owner == r.key()
}

// release gives an endpoint's addresses back.
func (p *pools) release(r *record) {
	p.v4.Release(r.Addr)
	if p.v6 != nil && r.Addr6.IsValid() {
		p.v6.Release(r.Addr6)
	}
}
