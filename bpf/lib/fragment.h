/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Fragments. The first one tells the ports of the others, so it must come first,
 * hold the whole header behind IP's, and not be written over. */
#pragma once
#include "drop.h"
#include "types.h"

struct fragment_key {
	__be32 saddr;
	__be32 daddr;
	__u32 from; /* the outer source, or the device: who may speak of these fragments */
	__be16 id;
	__u8 proto;
	__u8 program;
};

struct fragment_ports {
	__be16 sport;
	__be16 dport;
	__u16 end; /* bytes of the datagram that the first fragment has */
	__u16 pad;
	__u32 seen; /* s of the monotonic clock */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fragment_key);
	__type(value, struct fragment_ports);
} fragments SEC(".maps");

enum {
	FRAGMENT_SECONDS = 30, /* an id is used again some time */
	FRAGMENT_UNIT = 8,     /* bytes */
};

static __always_inline struct fragment_key fragment_key(const struct __sk_buff *skb,
                                                        const struct packet *p, __be16 id)
{
	struct fragment_key key = {
	    .saddr = p->t.saddr,
	    .daddr = p->t.daddr,
	    .from = p->outer ? p->outer : skb->ifindex,
	    .id = id,
	    .proto = p->t.proto,
	    .program = p->program,
	};

	return key;
}

static __always_inline __u32 seconds(void)
{
	return bpf_ktime_get_ns() / NSEC_PER_SEC;
}

/* Whether the fragment is one that can be. len is of what is
 * behind the IP header. */
static __always_inline int fragment_check(struct packet *p, __be16 frag_off, __u32 len)
{
	__u32 offset = (bpf_ntohs(frag_off) & IP_OFFSET) * FRAGMENT_UNIT;

	if (!len || offset + len > IP_MAX - sizeof(struct iphdr) ||
	    (frag_off & bpf_htons(IP_MF) && len % FRAGMENT_UNIT))
		return DROP(p, DROP_MALFORMED);
	if (!offset && len < (p->t.proto == IPPROTO_TCP ? sizeof(struct tcphdr) : FRAGMENT_UNIT))
		return DROP(p, DROP_TINY_FRAGMENT);
	return 0;
}

/* Tells the ports of a later fragment. */
static __always_inline int fragment_find(const struct __sk_buff *skb, struct packet *p, __be16 id,
                                         __be16 frag_off)
{
	struct fragment_key key = fragment_key(skb, p, id);
	struct fragment_ports *first = bpf_map_lookup_elem(&fragments, &key);

	if (!first || seconds() - first->seen > FRAGMENT_SECONDS)
		return DROP(p, DROP_EARLY_FRAGMENT);
	if ((bpf_ntohs(frag_off) & IP_OFFSET) * FRAGMENT_UNIT < first->end)
		return DROP(p, DROP_OVERLAP);
	p->t.sport = first->sport;
	p->t.dport = first->dport;
	return 0;
}

/* Remembers the ports of a first fragment. Each fragment is judged by itself, so
 * it does not matter yet whether this one passes. */
static __always_inline void fragment_learn(const struct __sk_buff *skb, const struct packet *p,
                                           __be16 id, __u32 len)
{
	struct fragment_key key = fragment_key(skb, p, id);
	struct fragment_ports first = {
	    .sport = p->t.sport, .dport = p->t.dport, .end = len, .seen = seconds()};

	bpf_map_update_elem(&fragments, &key, &first, BPF_ANY);
}
