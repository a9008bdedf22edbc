/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The chain of IPv6 extension headers (RFC 8200, 4). */
#pragma once
#include "drop.h"
#include "packet6.h"
#include "parse.h"

enum {
	EXTENSION_HEADERS = 6, /* that are walked */
	EXTENSION_UNIT = 8,    /* bytes */
	NEXTHDR_OFFSET = __builtin_offsetof(struct ipv6hdr, nexthdr),
};

static __always_inline int is_extension(__u8 proto)
{
	return proto == IPPROTO_HOPOPTS || proto == IPPROTO_ROUTING || proto == IPPROTO_FRAGMENT ||
	       proto == IPPROTO_DSTOPTS;
}

static __always_inline void note_fragment(struct headers6 *h, const struct ipv6ext *ext, __u32 at)
{
	__u16 word = bpf_ntohs(ext->frag_off);

	h->id = ext->id;
	h->offset = word & IP6_FRAG_OFFSET;
	h->more = word & IP6_FRAG_MORE;
	h->fragment = at;
}

/* Walks the headers of the IPv6 packet at off, or of the one that it quotes, up to
 * the first that is no extension, or that a later fragment does not have. Global,
 * so that the verifier walks it once. */
__attribute__((noinline)) int walk6(struct __sk_buff *skb, __u32 off, __u32 quoted)
{
	struct packet6 *x = packet6_in_hand();
	__u32 at = IP6_HLEN, i;
	struct headers6 *h;
	struct ipv6ext ext;
	__u8 next;

	if (!x || off > TUNNEL_INNER_MAX + IP_MAX ||
	    bpf_skb_load_bytes(skb, off + NEXTHDR_OFFSET, &next, sizeof(next)))
		return -DROP_MALFORMED;
	h = quoted ? &x->inner : &x->h;
	__builtin_memset(h, 0, sizeof(*h));
	for (i = 0; i <= EXTENSION_HEADERS; i++) {
		h->proto = next;
		h->l4 = at;
		if (!is_extension(next) || h->offset)
			return 0;
		if (next == IPPROTO_ROUTING)
			return -DROP_SOURCE_ROUTE;
		if ((next == IPPROTO_HOPOPTS && i) || (next == IPPROTO_FRAGMENT && h->fragment) ||
		    bpf_skb_load_bytes(skb, off + at, &ext, sizeof(ext)))
			return -DROP_MALFORMED;
		at += next == IPPROTO_FRAGMENT ? EXTENSION_UNIT : (ext.len + 1) * EXTENSION_UNIT;
		if (next == IPPROTO_FRAGMENT)
			note_fragment(h, &ext, at);
		next = ext.nexthdr;
	}
	return -DROP_EXTENSION_HEADERS;
}
