/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Fragments of IPv6 (RFC 8200, 4.5). As with IPv4 the first one tells the ports of
 * the others; and which protocol they carry, for a later one does not have to
 * know. A packet that has a fragment header and is whole (an atomic fragment, RFC
 * 6946) is no fragment. */
#pragma once
#include "fragment.h"
#include "packet6.h"

struct fragment6_key {
	struct addr saddr;
	struct addr daddr;
	__u32 from; /* the outer source, or the device: who may speak of these fragments */
	__be32 id;
	__u32 program;
};

struct fragment6_ports {
	__be16 sport;
	__be16 dport;
	__u16 end; /* bytes of the datagram that the first fragment has */
	__u8 proto;
	__u8 pad;
	__u32 seen; /* s of the monotonic clock */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fragment6_key);
	__type(value, struct fragment6_ports);
} fragments6 SEC(".maps");

static __always_inline struct fragment6_key
fragment6_key(const struct __sk_buff *skb, const struct packet *p, const struct packet6 *x)
{
	struct fragment6_key key = {
	    .saddr = x->t.saddr,
	    .daddr = x->t.daddr,
	    .from = p->outer ? p->outer : skb->ifindex,
	    .id = x->h.id,
	    .program = p->program,
	};

	return key;
}

static __always_inline int is_fragment6(const struct headers6 *h)
{
	return h->fragment && (h->offset || h->more);
}

/* Whether the fragment is one that can be: the rules of fragment_check, counted
 * from behind the fragment header. */
static __always_inline int fragment6_check(struct packet *p, const struct packet6 *x, __u32 *len)
{
	__u32 end = x->payload + IP6_HLEN;
	__u32 least = p->t.proto == IPPROTO_TCP ? sizeof(struct tcphdr) : FRAGMENT_UNIT;

	*len = end - x->h.fragment;
	if (end <= x->h.fragment || x->h.offset + *len > IP_MAX ||
	    (x->h.more && *len % FRAGMENT_UNIT))
		return DROP(p, DROP_MALFORMED);
	if (!x->h.offset && end < x->h.l4 + least)
		return DROP(p, DROP_TINY_FRAGMENT);
	return 0;
}

/* Tells the ports and the protocol of a later fragment. */
static __always_inline int fragment6_find(const struct __sk_buff *skb, struct packet *p,
                                          const struct packet6 *x)
{
	struct fragment6_key key = fragment6_key(skb, p, x);
	struct fragment6_ports *first = bpf_map_lookup_elem(&fragments6, &key);

	if (!first || seconds() - first->seen > FRAGMENT_SECONDS)
		return DROP(p, DROP_EARLY_FRAGMENT);
	if (x->h.offset < first->end)
		return DROP(p, DROP_OVERLAP);
	p->t.proto = first->proto;
	p->t.sport = first->sport;
	p->t.dport = first->dport;
	return 0;
}

/* Remembers a first fragment; see fragment_learn. */
static __always_inline void fragment6_learn(const struct __sk_buff *skb, const struct packet *p,
                                            const struct packet6 *x, __u32 len)
{
	struct fragment6_key key = fragment6_key(skb, p, x);
	struct fragment6_ports first = {.sport = p->t.sport,
	                                .dport = p->t.dport,
	                                .end = len,
	                                .proto = p->t.proto,
	                                .seen = seconds()};

	bpf_map_update_elem(&fragments6, &key, &first, BPF_ANY);
}
