/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Changing a packet's addresses and ports. */
#pragma once
#include "conntrack.h"
#include "parse.h"

/* The address that an endpoint sees as client when it serves itself. */
#define HAIRPIN_ADDR4 bpf_htonl(0xA9FE2A01) /* 169.254.42.1 */

static __always_inline __u32 csum_fold_diff(__sum16 check, __be32 from, __be32 to)
{
	__u32 sum = (__u16)~check;

	sum += (__u16)~from + (__u16) ~(from >> 16);
	sum += (to & 0xFFFF) + (to >> 16);
	sum = (sum & 0xFFFF) + (sum >> 16);
	sum = (sum & 0xFFFF) + (sum >> 16);
	return (__u16)~sum;
}

static __always_inline int l4_csum_offset(__u8 proto)
{
	if (proto == IPPROTO_TCP)
		return ETH_HLEN + IP_HLEN + __builtin_offsetof(struct tcphdr, check);
	return ETH_HLEN + IP_HLEN + __builtin_offsetof(struct udphdr, check);
}

/* A packet's ports as one number. */
static __always_inline __u32 port_pair(__be16 sport, __be16 dport)
{
	return (__u32)sport << 16 | dport;
}

/* L4 checksums go through the helper: a packet from a veth usually has a
 * partial one, which a direct update would corrupt. */
static __always_inline int nat4_csum(struct __sk_buff *skb, __u8 proto, __be32 old_saddr,
                                     __be32 saddr, __be32 old_daddr, __be32 daddr, __u32 old_ports,
                                     __u32 ports)
{
	__u64 flags = proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	int off = l4_csum_offset(proto);
	long err = 0;

	if (old_saddr != saddr)
		err |= bpf_l4_csum_replace(skb, off, old_saddr, saddr,
		                           flags | BPF_F_PSEUDO_HDR | sizeof(saddr));
	if (old_daddr != daddr)
		err |= bpf_l4_csum_replace(skb, off, old_daddr, daddr,
		                           flags | BPF_F_PSEUDO_HDR | sizeof(daddr));
	if (old_ports != ports)
		err |= bpf_l4_csum_replace(skb, off, old_ports, ports, flags | sizeof(ports));
	return err ? -1 : 0;
}

/* Gives an echo another identifier. ICMP's checksum covers no addresses. */
static __always_inline int nat4_echo(struct __sk_buff *skb, __be16 id)
{
	struct icmphdr *icmp = data(skb) + ETH_HLEN + IP_HLEN;
	__be16 old;

	if ((void *)(icmp + 1) > data_end(skb))
		return -1;
	old = icmp->id;
	icmp->id = id;
	if (old == id)
		return 0;
	return bpf_l4_csum_replace(skb,
	                           ETH_HLEN + IP_HLEN + __builtin_offsetof(struct icmphdr, check),
	                           old, id, sizeof(id));
}

/* Writes addresses and ports (port_pair) into the TCP, UDP or echo packet behind
 * the Ethernet header; a later fragment has no ports. Global, so that the verifier
 * walks it once; on kernels before 5.12 such functions take only numbers. */
__attribute__((noinline)) int nat4_write(struct __sk_buff *skb, __u32 saddr, __u32 daddr,
                                         __u32 ports, __u32 later)
{
	struct iphdr *ip = data(skb) + ETH_HLEN;
	struct udphdr *l4 = (void *)(ip + 1);
	__be32 old_saddr, old_daddr;

	if ((void *)(ip + 1) > data_end(skb) ||
	    (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP &&
	     ip->protocol != IPPROTO_ICMP))
		return -1;
	old_saddr = ip->saddr;
	old_daddr = ip->daddr;
	if (!later && ip->protocol == IPPROTO_ICMP) {
		if (nat4_echo(skb, ports >> 16 | (ports & 0xFFFF)))
			return -1;
		ip = data(skb) + ETH_HLEN;
		if ((void *)(ip + 1) > data_end(skb))
			return -1;
	} else if (!later) {
		if ((void *)(l4 + 1) > data_end(skb))
			return -1;
		if (nat4_csum(skb, ip->protocol, old_saddr, saddr, old_daddr, daddr,
		              port_pair(l4->source, l4->dest), ports))
			return -1;
		ip = data(skb) + ETH_HLEN;
		l4 = (void *)(ip + 1);
		if ((void *)(l4 + 1) > data_end(skb))
			return -1;
		l4->source = ports >> 16;
		l4->dest = ports;
	}
	ip->check = csum_fold_diff(ip->check, old_saddr, saddr);
	ip->check = csum_fold_diff(ip->check, old_daddr, daddr);
	ip->saddr = saddr;
	ip->daddr = daddr;
	return 0;
}

static __always_inline int nat4(struct __sk_buff *skb, struct packet *p, const struct tuple4 *to)
{
	if (nat4_write(skb, to->saddr, to->daddr, port_pair(to->sport, to->dport), p->later))
		return DROP(p, DROP_REWRITE_FAILED);
	return 0;
}

/* A backend's answer gets the service's address back, by whichever way it came. */
static __always_inline int answer_nat4(struct __sk_buff *skb, struct packet *p,
                                       const struct flow *f, const struct ct_entry *e)
{
	struct tuple4 to = p->t;

	if (!e || f->dir != FLOW_REPLY || !(e->flags & CT_NAT))
		return 0;
	to.saddr = e->nat_addr.w[3];
	to.sport = e->nat_port;
	return nat4(skb, p, &to);
}
