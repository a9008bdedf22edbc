// SPDX-License-Identifier: Apache-2.0

// Package rangetext reads prefixes of records and reports, which have been checked
// where they were taken.
//
// Start with Parse. What a range may be, and whose it is, is not asked here.
package rangetext

import "net/netip"

// Parse are those of the texts that are prefixes, without their hosts' bits.
func Parse(texts []string) (out []netip.Prefix) {
	for _, text := range texts {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}
