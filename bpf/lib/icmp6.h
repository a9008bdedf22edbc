/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMPv6 errors that belong to a flow. Those we send are in reject6.h. */
#pragma once
#include "conntrack6.h"
#include "icmp.h"
#include "nat6.h"
#include "parse6.h"

/* Finds the flow of the packet that the error quotes. The error must go to the
 * quoted packet's sender. */
static __always_inline struct ct_entry *related_flow6(struct __sk_buff *skb, __u32 off,
                                                      struct packet6 *x, struct flow *f)
{
	if (parse_quoted6(skb, off) < 0 || !same_addr(&x->quoted.saddr, &x->t.daddr))
		return NULL;
	flow_key6(f, &x->key, &x->quoted);
	return ct_find6(f, &x->key);
}

/* Translates one end of the packet that an ICMPv6 error quotes, and of the error
 * itself, to packet6's nat and this port. The error's checksum covers its
 * addresses and all that it quotes. Global: see nat4_write. */
__attribute__((noinline)) int related_write6(struct __sk_buff *skb, __u32 end, __u32 port)
{
	int dest = end == QUOTED_DESTINATION;
	struct packet6 *x = packet6_in_hand();
	struct addr outer, quoted;
	__u32 check, inner, at;
	__be16 old, to = port;

	if (!x)
		return -1;
	check = ETH_HLEN + x->h.l4 + __builtin_offsetof(struct icmphdr, check);
	inner = ETH_HLEN + x->h.l4 + sizeof(struct icmphdr);
	if (bpf_skb_load_bytes(skb, ETH_HLEN + (dest ? SADDR6 : DADDR6), &outer, sizeof(outer)) ||
	    bpf_skb_load_bytes(skb, inner + (dest ? DADDR6 : SADDR6), &quoted, sizeof(quoted)))
		return -1;
	if (same_addr(&outer, &quoted) &&
	    replace_addr6(skb, ETH_HLEN + (dest ? SADDR6 : DADDR6), &x->nat, check,
	                  BPF_F_PSEUDO_HDR | csum6_flag))
		return -1;
	if (replace_addr6(skb, inner + (dest ? DADDR6 : SADDR6), &x->nat, check, 0))
		return -1;
	at = inner + x->inner.l4;
	if (x->inner.proto == IPPROTO_ICMPV6)
		at += __builtin_offsetof(struct icmphdr, id);
	else if (x->inner.proto != IPPROTO_TCP && x->inner.proto != IPPROTO_UDP)
		return -1;
	else
		at += dest ? __builtin_offsetof(struct udphdr, dest)
		           : __builtin_offsetof(struct udphdr, source);
	if (bpf_skb_load_bytes(skb, at, &old, sizeof(old)))
		return -1;
	if (old == to)
		return 0;
	if (bpf_l4_csum_replace(skb, check, old, to, sizeof(to)))
		return -1;
	return bpf_skb_store_bytes(skb, at, &to, sizeof(to), 0) ? -1 : 0;
}

/* See related_nat4. */
static __always_inline int related_nat6(struct __sk_buff *skb, struct packet *p, struct packet6 *x,
                                        __u32 end, const struct addr *addr, __be16 port)
{
	x->nat = *addr;
	return related_write6(skb, end, port) ? DROP(p, DROP_REWRITE_FAILED) : 0;
}
