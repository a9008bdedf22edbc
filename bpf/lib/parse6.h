/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From bytes to a struct packet and its struct packet6: addresses are in the
 * latter's t, ports and protocol in both. */
#pragma once
#include "fragment6.h"
#include "headers6.h"

static __always_inline int is_icmp6_error(__u8 type)
{
	return type >= ICMP6_UNREACHABLE && type <= ICMP6_PARAMETER_PROBLEM;
}

static __always_inline int is_control6(__u8 type)
{
	return (type >= ICMP6_LISTENER_QUERY && type <= ICMP6_REDIRECT) ||
	       type == ICMP6_LISTENER_REPORT2;
}

/* Ports of an ICMPv6 echo: the identifier is the requester's. */
static __always_inline int echo_ports6(struct tuple4 *t, const struct icmphdr *icmp)
{
	if (icmp->type == ICMP6_ECHO)
		t->sport = icmp->id;
	else if (icmp->type == ICMP6_ECHOREPLY)
		t->dport = icmp->id;
	else
		return -1;
	return 0;
}

/* What no IPv6 packet carries; ICMP of IPv4 would be taken for an echo by policy,
 * and what is reserved for its own count (POLICY_DEFAULT). */
static __always_inline int is_foreign6(__u8 proto)
{
	return proto == IPPROTO_NONE || proto == IPPROTO_ICMP || proto == IPPROTO_RESERVED;
}

static __always_inline __u32 l4_head(__u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
		return sizeof(struct tcphdr);
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
	case IPPROTO_ICMPV6:
		return sizeof(struct udphdr);
	}
	return 0; /* no ports: policy judges by protocol */
}

/* Reads the first l4_head bytes of layer 4. */
static __always_inline int read_head(struct packet *p, struct packet6 *x, const void *head)
{
	const struct tcphdr *tcp = head;
	const struct icmphdr *icmp = head;

	if (p->t.proto != IPPROTO_ICMPV6) {
		p->t.sport = tcp->source;
		p->t.dport = tcp->dest;
		if (p->t.proto == IPPROTO_TCP)
			p->tcp_flags = tcp->flags;
		return 0;
	}
	p->icmp_type = icmp->type;
	p->icmp_code = icmp->code;
	p->icmp_error = is_icmp6_error(icmp->type);
	x->control = is_control6(icmp->type);
	if (!p->icmp_error && !x->control && echo_ports6(&p->t, icmp))
		return DROP(p, DROP_UNSUPPORTED_PROTOCOL);
	return 0;
}

/* The way of packets with extension headers. Global, so that the verifier walks it
 * once. */
__attribute__((noinline)) int parse_extended6(struct __sk_buff *skb, __u32 off)
{
	struct packet6 *x = packet6_in_hand();
	struct packet *p = packet_in_hand();
	__u32 need, len = 0;
	int ret;

	if (!x || !p || off > TUNNEL_INNER_MAX)
		return -DROP_MALFORMED;
	ret = walk6(skb, off, 0);
	if (ret < 0)
		return DROP(p, -ret);
	p->t.proto = x->h.proto;
	if (is_foreign6(p->t.proto))
		return DROP(p, DROP_UNSUPPORTED_PROTOCOL);
	if (is_fragment6(&x->h)) {
		ret = fragment6_check(p, x, &len);
		if (ret < 0)
			return ret;
	}
	p->later = !!x->h.offset;
	if (p->later)
		return fragment6_find(skb, p, x);
	need = l4_head(p->t.proto);
	if (!need) /* no ports */
		goto learn;
	if (x->payload + IP6_HLEN < x->h.l4 + need ||
	    bpf_skb_load_bytes(skb, off + x->h.l4, x->head, sizeof(struct udphdr)) ||
	    (p->t.proto == IPPROTO_TCP && bpf_skb_load_bytes(skb, off + x->h.l4, x->head, L4_HEAD)))
		return DROP(p, DROP_MALFORMED);
	ret = read_head(p, x, x->head);
	if (ret < 0)
		return ret;
learn:
	if (!len)
		return 0;
	if (p->icmp_error || x->control)
		return DROP(p, DROP_MALFORMED); /* they fit into a packet (RFC 6980) */
	fragment6_learn(skb, p, x, len);
	return 0;
}

static __always_inline int parse_plain6(struct __sk_buff *skb, __u32 off, struct packet *p,
                                        struct packet6 *x)
{
	void *l4 = data(skb) + off + IP6_HLEN;
	__u32 need = l4_head(p->t.proto);

	if (!need)
		return 0;
	if (x->payload < need || l4 + sizeof(struct udphdr) > data_end(skb) ||
	    (p->t.proto == IPPROTO_TCP && l4 + sizeof(struct tcphdr) > data_end(skb)))
		return DROP(p, DROP_MALFORMED);
	return read_head(p, x, l4);
}

/* Parses the IPv6 packet at off; the caller has pulled. */
static __always_inline int parse6(struct __sk_buff *skb, __u32 off, struct packet *p,
                                  struct packet6 *x)
{
	struct ipv6hdr *ip = data(skb) + off;
	int ret;

	if ((void *)(ip + 1) > data_end(skb))
		return DROP(p, DROP_MALFORMED);
	p->v6 = 1;
	p->t.proto = ip->nexthdr;
	p->tos = bpf_ntohl(ip->version_class) >> 20;
	x->t.saddr = ip->saddr;
	x->t.daddr = ip->daddr;
	x->payload = bpf_ntohs(ip->payload_len);
	x->hop_limit = ip->hop_limit;
	x->control = 0;
	x->h.l4 = IP6_HLEN;
	x->h.fragment = 0;
	if (bpf_ntohl(ip->version_class) >> 28 != 6 || !ip->hop_limit || !x->payload ||
	    is_multicast6(&x->t.saddr) || is_unroutable6(&x->t.saddr) ||
	    is_unroutable6(&x->t.daddr) || is_unspecified6(&x->t.daddr))
		return DROP(p, DROP_MALFORMED);
	if (unlikely(is_extension(p->t.proto) || is_foreign6(p->t.proto)))
		ret = parse_extended6(skb, off);
	else
		ret = parse_plain6(skb, off, p, x);
	if (ret < 0)
		return ret;
	if (unlikely(is_multicast6(&x->t.daddr)) && !x->control)
		return DROP(p, DROP_MULTICAST);
	x->t.sport = p->t.sport;
	x->t.dport = p->t.dport;
	x->t.proto = p->t.proto;
	return 0;
}

/* The tuple of the packet that the ICMPv6 error at off quotes, seen from that
 * packet's sender. Global: it leaves the tuple in packet6. */
__attribute__((noinline)) int parse_quoted6(struct __sk_buff *skb, __u32 off)
{
	struct packet6 *x = packet6_in_hand();
	struct tuple4 ports = {};
	struct ipv6hdr ip;
	__u32 at;

	if (!x || off > TUNNEL_INNER_MAX)
		return -DROP_MALFORMED;
	at = off + x->h.l4 + sizeof(struct icmphdr);
	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) ||
	    bpf_ntohl(ip.version_class) >> 28 != 6 || walk6(skb, at, 1) < 0 || x->inner.offset)
		return -DROP_MALFORMED; /* of a later fragment no ports are quoted */
	x->quoted.saddr = ip.saddr;
	x->quoted.daddr = ip.daddr;
	x->quoted.proto = x->inner.proto;
	if (!l4_head(x->quoted.proto)) {
		x->quoted.sport = 0;
		x->quoted.dport = 0;
		return 0;
	}
	if (bpf_skb_load_bytes(skb, at + x->inner.l4, x->head, sizeof(struct udphdr)))
		return -DROP_MALFORMED;
	ports.sport = ((struct udphdr *)x->head)->source;
	ports.dport = ((struct udphdr *)x->head)->dest;
	if (x->quoted.proto == IPPROTO_ICMPV6) {
		ports.sport = 0;
		ports.dport = 0;
		if (echo_ports6(&ports, (struct icmphdr *)x->head))
			return -DROP_UNRELATED_ICMP;
	}
	x->quoted.sport = ports.sport;
	x->quoted.dport = ports.dport;
	return 0;
}
