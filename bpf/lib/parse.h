/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From bytes to a struct packet. */
#pragma once
#include "drop.h"
#include "fragment.h"
#include "types.h"

/* Bytes before what the parser must see: an IPv4 header without options, and
 * as much of the next as says what the packet is. */
enum {
	L4_MAX = sizeof(struct tcphdr),
	IP_HLEN = sizeof(struct iphdr),
	TUNNEL_INNER_MAX = 128, /* where an IP header may be in a packet */
};

static __always_inline void *data(const struct __sk_buff *skb)
{
	return (void *)(long)skb->data;
}

static __always_inline void *data_end(const struct __sk_buff *skb)
{
	return (void *)(long)skb->data_end;
}

/* Makes the first need bytes readable, as far as the packet has them. */
static __always_inline void pull(struct __sk_buff *skb, __u32 need)
{
	if (likely(data(skb) + need <= data_end(skb)))
		return;
	bpf_skb_pull_data(skb, need < skb->len ? need : skb->len);
}

static __always_inline int is_multicast4(__be32 a)
{
	return (bpf_ntohl(a) & 0xF0000000) == 0xE0000000 || a == 0xFFFFFFFF;
}

/* Addresses that are on no wire (RFC 1122, 3.2.1.3): of this network, and loopback. */
static __always_inline int is_unroutable4(__be32 a)
{
	__u32 net = bpf_ntohl(a) >> 24;

	return !net || net == 127;
}

/* Addresses that no packet on a wire comes from. */
static __always_inline int is_no_source4(__be32 a)
{
	return is_unroutable4(a) || is_multicast4(a);
}

static __always_inline int is_icmp_error(__u8 type)
{
	return type == ICMP_UNREACHABLE || type == ICMP_SOURCE_QUENCH ||
	       type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER_PROBLEM;
}

/* Ports of an ICMP echo: the identifier is the requester's. */
static __always_inline int echo_ports(struct tuple4 *t, const struct icmphdr *icmp)
{
	if (icmp->type == ICMP_ECHO)
		t->sport = icmp->id;
	else if (icmp->type == ICMP_ECHOREPLY)
		t->dport = icmp->id;
	else
		return -1;
	return 0;
}

static __always_inline int parse_l4(struct packet *p, void *l4, void *end)
{
	struct tcphdr *tcp = l4;
	struct udphdr *udp = l4;
	struct icmphdr *icmp = l4;

	switch (p->t.proto) {
	case IPPROTO_TCP:
		if ((void *)(tcp + 1) > end)
			return DROP(p, DROP_MALFORMED);
		p->tcp_flags = tcp->flags;
		break;
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		break;
	case IPPROTO_ICMP:
		if ((void *)(icmp + 1) > end)
			return DROP(p, DROP_MALFORMED);
		p->icmp_type = icmp->type;
		p->icmp_code = icmp->code;
		p->icmp_error = is_icmp_error(icmp->type);
		if (!p->icmp_error && echo_ports(&p->t, icmp))
			return DROP(p, DROP_UNSUPPORTED_PROTOCOL);
		return 0;
	case IPPROTO_ICMPV6:   /* policy would take it for an echo */
	case IPPROTO_RESERVED: /* … and for its own count (POLICY_DEFAULT) */
		return DROP(p, DROP_UNSUPPORTED_PROTOCOL);
	default:
		return 0; /* no ports: policy judges by protocol */
	}
	if ((void *)(udp + 1) > end)
		return DROP(p, DROP_MALFORMED);
	p->t.sport = udp->source;
	p->t.dport = udp->dest;
	return 0;
}

/* What fragment_state answers: the ports below, and above them a drop_reason. */
enum {
	FRAGMENT_REASON_SHIFT = 32,
};

static __always_inline int fragment_read(struct __sk_buff *skb, struct packet *p, struct iphdr *ip,
                                         void *end)
{
	__u32 len = bpf_ntohs(ip->tot_len) - IP_HLEN;
	__be16 id = ip->id;
	int ret;

	if (bpf_ntohs(ip->tot_len) < IP_HLEN)
		return DROP(p, DROP_MALFORMED);
	ret = fragment_check(p, ip->frag_off, len);
	if (ret < 0)
		return ret;
	if (ip->frag_off & bpf_htons(IP_OFFSET))
		return fragment_find(skb, p, id, ip->frag_off);
	ret = parse_l4(p, (void *)(ip + 1), end);
	if (ret < 0)
		return ret;
	if (p->icmp_error)
		return DROP(p, DROP_MALFORMED); /* errors fit into a packet */
	fragment_learn(skb, p, id, len);
	return 0;
}

/* Finds the ports of the fragment at off, or learns them. Who says so is outer
 * or the device. Global, so that the verifier walks it once; on kernels before
 * 5.12 such functions take only numbers. */
__attribute__((noinline)) __u64 fragment_state(struct __sk_buff *skb, __u32 off, __u32 outer,
                                               __u32 program)
{
	struct packet p = {.outer = outer, .program = program};
	void *end = data_end(skb);
	struct iphdr *ip;
	int ret;

	if (off > TUNNEL_INNER_MAX)
		return (__u64)DROP_MALFORMED << FRAGMENT_REASON_SHIFT;
	ip = data(skb) + off;
	if ((void *)(ip + 1) > end)
		return (__u64)DROP_MALFORMED << FRAGMENT_REASON_SHIFT;
	p.t.saddr = ip->saddr;
	p.t.daddr = ip->daddr;
	p.t.proto = ip->protocol;
	ret = fragment_read(skb, &p, ip, end);
	return (__u64)(__u8)-ret << FRAGMENT_REASON_SHIFT | (__u32)p.t.sport << 16 | p.t.dport;
}

static __always_inline int parse_fragment(struct __sk_buff *skb, __u32 off, struct packet *p)
{
	__u64 state = fragment_state(skb, off, p->outer, p->program);
	__u8 reason = state >> FRAGMENT_REASON_SHIFT;

	if (reason)
		return DROP(p, reason);
	p->t.sport = state >> 16;
	p->t.dport = state;
	return 0;
}

/* Parses the IPv4 packet at off; the caller has pulled. */
static __always_inline int parse4(struct __sk_buff *skb, __u32 off, struct packet *p)
{
	void *end = data_end(skb);
	struct iphdr *ip = data(skb) + off;

	if ((void *)(ip + 1) > end)
		return DROP(p, DROP_MALFORMED);
	p->t.saddr = ip->saddr;
	p->t.daddr = ip->daddr;
	p->t.proto = ip->protocol;
	p->tos = ip->tos;
	if (ip->version_ihl != IP_VERSION_IHL)
		return ip->version_ihl >> 4 == 4 && ip->version_ihl > IP_VERSION_IHL
		           ? DROP(p, DROP_IP_OPTIONS)
		           : DROP(p, DROP_MALFORMED);
	if (is_multicast4(ip->daddr))
		return DROP(p, DROP_MULTICAST);
	/* Without a branch: to the verifier all packets look alike. */
	p->later = ((bpf_ntohs(ip->frag_off) & IP_OFFSET) + IP_OFFSET) / (IP_OFFSET + 1);
	if (unlikely(ip->frag_off & bpf_htons(IP_FRAGMENT))) {
		int ret = parse_fragment(skb, off, p);

		if (ret < 0 || p->later)
			return ret;
		end = data_end(skb);
		ip = data(skb) + off;
		if ((void *)(ip + 1) > end)
			return DROP(p, DROP_MALFORMED);
	}
	return parse_l4(p, ip + 1, end);
}

/* The tuple of the packet that an ICMP error at off quotes, seen from that
 * packet's sender. */
static __always_inline int parse_quoted(struct __sk_buff *skb, __u32 off, struct packet *p,
                                        struct tuple4 *t)
{
	void *end = data_end(skb);
	struct iphdr *ip = data(skb) + off + IP_HLEN + sizeof(struct icmphdr);
	struct icmphdr *icmp = (void *)(ip + 1);
	struct udphdr *udp = (void *)(ip + 1);

	if ((void *)(udp + 1) > end || ip->version_ihl != IP_VERSION_IHL ||
	    ip->frag_off & bpf_htons(IP_OFFSET)) /* no ports are quoted */
		return DROP(p, DROP_MALFORMED);
	t->saddr = ip->saddr;
	t->daddr = ip->daddr;
	t->proto = ip->protocol;
	switch (ip->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		t->sport = udp->source;
		t->dport = udp->dest;
		return 0;
	case IPPROTO_ICMP:
		return echo_ports(t, icmp) ? DROP(p, DROP_UNRELATED_ICMP) : 0;
	}
	return 0;
}
