// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"
	"strconv"
	"strings"

	wire "github.com/miekg/dns"
)

// reverse answers for the name of an address of the mesh; nil when the address
// is somebody else's.
func (s *Server) reverse(q *wire.Msg, a netip.Addr) *wire.Msg {
	names := s.cfg.Names.Names(a)
	if len(names) == 0 && !s.cfg.Names.Inside(a) {
		return nil
	}
	r := reply(q)
	if _, all := s.cfg.Names.Known(); len(names) == 0 && !all {
		r.Rcode = wire.RcodeServerFailure
		return r
	}
	r.Authoritative = true
	if t := q.Question[0].Qtype; t == wire.TypePTR || t == wire.TypeANY {
		for _, n := range names {
			r.Answer = append(r.Answer, &wire.PTR{
				Hdr: wire.RR_Header{Name: q.Question[0].Name, Rrtype: wire.TypePTR, Class: wire.ClassINET, Ttl: ttl},
				Ptr: n + "." + Zone + ".",
			})
		}
	}
	if len(names) == 0 {
		r.Rcode = wire.RcodeNameError
	}
	if len(r.Answer) == 0 {
		r.Ns = []wire.RR{soa()}
	}
	return r
}

// reverseOf is the address that a name below in-addr.arpa or ip6.arpa is of.
func reverseOf(name string) (netip.Addr, bool) {
	name = strings.ToLower(name)
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		return reverse4(strings.Split(rest, "."))
	}
	if rest, ok := strings.CutSuffix(name, ".ip6.arpa."); ok {
		return reverse6(strings.Split(rest, "."))
	}
	return netip.Addr{}, false
}

func reverse4(parts []string) (netip.Addr, bool) {
	var a [4]byte
	if len(parts) != len(a) {
		return netip.Addr{}, false
	}
	for i, p := range parts {
		v, err := strconv.ParseUint(p, 10, 8)
		if err != nil || p != strconv.FormatUint(v, 10) {
			return netip.Addr{}, false
		}
		a[len(a)-1-i] = byte(v)
	}
	return netip.AddrFrom4(a), true
}

func reverse6(nibbles []string) (netip.Addr, bool) {
	var a [16]byte
	if len(nibbles) != 2*len(a) {
		return netip.Addr{}, false
	}
	for i, p := range nibbles {
		v, err := strconv.ParseUint(p, 16, 4)
		if err != nil || len(p) != 1 {
			return netip.Addr{}, false
		}
		at := len(nibbles) - 1 - i
		a[at/2] |= byte(v) << (4 * (1 - at%2))
	}
	return netip.AddrFrom16(a), true
}
