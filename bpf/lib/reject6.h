/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Answers to the sender of a dropped IPv6 packet: ICMPv6 errors and TCP resets. */
#pragma once
#include "ndp.h"
#include "parse6.h"
#include "reject.h"

enum {
	ICMP6_ERROR_QUOTE = 128, /* bytes, zeros behind a shorter packet */
	ICMP6_ERROR_GROWTH = IP6_HLEN + sizeof(struct icmphdr),
};

struct icmp6_error {
	struct ipv6hdr ip;
	struct icmphdr icmp;
	struct ipv6hdr quoted;
	__u8 rest[ICMP6_ERROR_QUOTE - IP6_HLEN];
};

struct tcp6_reset {
	struct ipv6hdr ip;
	struct tcphdr tcp;
};

/* Turns the packet into an ICMPv6 error for its sender (RFC 4443, 3) and sends it
 * back where it came from: from the packet's destination, or from this node when
 * its tunnel is what the packet does not fit into. Global: see answer_icmp. */
__attribute__((noinline)) int answer_icmp6(struct __sk_buff *skb, __u32 type, __u32 code, __u32 mtu)
{
	struct icmp6_error *f;
	struct ethhdr *eth;

	if (bpf_skb_change_tail(skb, ETH_HLEN + ICMP6_ERROR_QUOTE, 0) ||
	    bpf_skb_adjust_room(skb, ICMP6_ERROR_GROWTH, BPF_ADJ_ROOM_MAC, 0))
		return TC_ACT_SHOT;
	pull(skb, ETH_HLEN + sizeof(*f));
	eth = data(skb);
	f = (void *)(eth + 1);
	if ((void *)(f + 1) > data_end(skb))
		return TC_ACT_SHOT;
	swap_macs(eth);
	__builtin_memset(f, 0, ICMP6_ERROR_GROWTH);
	fill_ipv6(&f->ip, sizeof(*f) - IP6_HLEN, IP_TTL);
	f->ip.saddr = f->quoted.daddr;
	if (type == ICMP6_TOO_BIG && !is_node_addr6(&f->quoted.saddr) &&
	    (node_addr6[0] | node_addr6[3])) {
		f->ip.saddr.w[0] = node_addr6[0];
		f->ip.saddr.w[1] = node_addr6[1];
		f->ip.saddr.w[2] = node_addr6[2];
		f->ip.saddr.w[3] = node_addr6[3];
	}
	f->ip.daddr = f->quoted.saddr;
	f->icmp.type = type;
	f->icmp.code = code;
	f->icmp.seq = bpf_htons(mtu); /* of a field of 32 bits that begins at id */
	f->icmp.check = l4_check6(&f->ip, &f->icmp, sizeof(*f) - IP6_HLEN, IPPROTO_ICMPV6);
	return bpf_redirect(skb->ifindex, 0);
}

/* Sequence numbers and flags of the answer to a segment; payload is of what the
 * segment carries. */
static __always_inline void reset_of(struct tcphdr *to, const struct tcphdr *from, __u32 payload)
{
	if (from->flags & TCP_SYN)
		payload++;
	if (from->flags & TCP_FIN)
		payload++;
	to->source = from->dest;
	to->dest = from->source;
	to->seq = from->flags & TCP_ACK ? from->ack : 0;
	to->ack = from->flags & TCP_ACK ? 0 : bpf_htonl(bpf_ntohl(from->seq) + payload);
	to->flags = from->flags & TCP_ACK ? TCP_RST : TCP_RST | TCP_ACK;
	to->offset = sizeof(*to) / 4 << 4;
	to->window = 0;
	to->urgent = 0;
	to->check = 0;
}

/* Turns the TCP segment into the reset that a closed port sends, and sends it back
 * where it came from. Global: see answer_reset. */
__attribute__((noinline)) int answer_reset6(struct __sk_buff *skb)
{
	struct packet6 *x = packet6_in_hand();
	struct tcp6_reset *r;
	struct tcphdr tcp;
	struct ethhdr *eth;
	__u32 headers;

	if (!x || bpf_skb_load_bytes(skb, ETH_HLEN + x->h.l4, &tcp, sizeof(tcp)))
		return TC_ACT_SHOT;
	headers = x->h.l4 - IP6_HLEN + (tcp.offset >> 4) * 4;
	if (bpf_skb_change_tail(skb, ETH_HLEN + sizeof(*r), 0))
		return TC_ACT_SHOT;
	pull(skb, ETH_HLEN + sizeof(*r));
	eth = data(skb);
	r = (void *)(eth + 1);
	if ((void *)(r + 1) > data_end(skb))
		return TC_ACT_SHOT;
	swap_macs(eth);
	fill_ipv6(&r->ip, sizeof(r->tcp), IP_TTL);
	r->ip.nexthdr = IPPROTO_TCP;
	r->ip.saddr = x->t.daddr;
	r->ip.daddr = x->t.saddr;
	reset_of(&r->tcp, &tcp, x->payload > headers ? x->payload - headers : 0);
	r->tcp.check = l4_check6(&r->ip, &r->tcp, sizeof(r->tcp), IPPROTO_TCP);
	return bpf_redirect(skb->ifindex, 0);
}

/* See finish_answering. */
static __always_inline int finish_answering6(struct __sk_buff *skb, struct packet *p, int verdict)
{
	int act = finish(p, verdict);

	if (likely(verdict >= 0))
		return act;
	if (p->later || p->icmp_error)
		return act;
	if (verdict == -DROP_PACKET_TOO_BIG && p->mtu)
		return answer_icmp6(skb, ICMP6_TOO_BIG, 0, p->mtu);
	if (verdict != -DROP_NO_BACKEND && verdict != -DROP_TUPLE_IN_USE)
		return act;
	if (p->t.proto != IPPROTO_TCP)
		return answer_icmp6(skb, ICMP6_UNREACHABLE, ICMP6_CODE_PORT, 0);
	return p->tcp_flags & TCP_RST ? act : answer_reset6(skb);
}
