/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Changing the addresses and ports of an IPv6 packet. */
#pragma once
#include "config.h"
#include "nat.h"
#include "packet6.h"
#include "parse6.h"

/* The address that an endpoint sees as client when it serves itself: 100::2a01, of
 * the prefix that nobody has (RFC 6666). */
static __always_inline struct addr hairpin_addr6(void)
{
	struct addr a = {.w = {bpf_htonl(0x01000000), 0, 0, bpf_htonl(0x2A01)}};

	return a;
}

enum {
	SADDR6 = __builtin_offsetof(struct ipv6hdr, saddr),
	DADDR6 = __builtin_offsetof(struct ipv6hdr, daddr),
};

/* Replaces the address at an offset, which the checksum at check covers; 0: no
 * checksum does. */
static __always_inline int replace_addr6(struct __sk_buff *skb, __u32 at, struct addr *to,
                                         __u32 check, __u64 flags)
{
	struct addr from;
	__s32 diff;

	if (bpf_skb_load_bytes(skb, at, &from, sizeof(from)))
		return -1;
	if (same_addr(&from, to))
		return 0;
	diff = bpf_csum_diff(&from, sizeof(from), to, sizeof(*to), 0);
	if (check && bpf_l4_csum_replace(skb, check, 0, (__u32)diff, flags))
		return -1;
	return bpf_skb_store_bytes(skb, at, to, sizeof(*to), 0) ? -1 : 0;
}

/* Where layer 4 has its checksum. */
static __always_inline __u32 csum_offset6(__u8 proto)
{
	if (proto == IPPROTO_TCP)
		return __builtin_offsetof(struct tcphdr, check);
	if (proto == IPPROTO_ICMPV6)
		return __builtin_offsetof(struct icmphdr, check);
	return __builtin_offsetof(struct udphdr, check);
}

/* Gives an echo another identifier. */
static __always_inline int nat6_echo(struct __sk_buff *skb, __u32 l4, __be16 id)
{
	__u32 at = l4 + __builtin_offsetof(struct icmphdr, id);
	__be16 old;

	if (bpf_skb_load_bytes(skb, at, &old, sizeof(old)))
		return -1;
	if (old == id)
		return 0;
	if (bpf_l4_csum_replace(skb, l4 + csum_offset6(IPPROTO_ICMPV6), old, id, sizeof(id)))
		return -1;
	return bpf_skb_store_bytes(skb, at, &id, sizeof(id), 0) ? -1 : 0;
}

/* Gives the TCP, UDP or echo packet behind the Ethernet header the addresses and
 * ports of packet6's to; a later fragment has no ports. Global: see nat4_write. */
__attribute__((noinline)) int nat6_write(struct __sk_buff *skb, __u32 proto, __u32 later)
{
	__u64 flags = (proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0);
	struct packet6 *x = packet6_in_hand();
	__u32 l4, check, old, ports;

	if (!x || (proto != IPPROTO_TCP && proto != IPPROTO_UDP && proto != IPPROTO_ICMPV6))
		return -1;
	l4 = ETH_HLEN + x->h.l4;
	check = later ? 0 : l4 + csum_offset6(proto);
	if (replace_addr6(skb, ETH_HLEN + SADDR6, &x->to.saddr, check,
	                  flags | BPF_F_PSEUDO_HDR | csum6_flag) ||
	    replace_addr6(skb, ETH_HLEN + DADDR6, &x->to.daddr, check,
	                  flags | BPF_F_PSEUDO_HDR | csum6_flag))
		return -1;
	if (later)
		return 0;
	if (proto == IPPROTO_ICMPV6)
		return nat6_echo(skb, l4, x->to.sport | x->to.dport);
	ports = x->to.sport | (__u32)x->to.dport << 16;
	if (bpf_skb_load_bytes(skb, l4, &old, sizeof(old)))
		return -1;
	if (old == ports)
		return 0;
	if (bpf_l4_csum_replace(skb, check, old, ports, flags | sizeof(ports)))
		return -1;
	return bpf_skb_store_bytes(skb, l4, &ports, sizeof(ports), 0) ? -1 : 0;
}

static __always_inline int nat6(struct __sk_buff *skb, struct packet *p)
{
	if (nat6_write(skb, p->t.proto, p->later))
		return DROP(p, DROP_REWRITE_FAILED);
	return 0;
}
