/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Answers to the sender of a dropped packet, so that it need not wait: ICMP
 * errors and TCP resets. The functions are global and take only numbers: the
 * verifier walks them once, whoever calls. */
#pragma once
#include "config.h"
#include "event.h"
#include "parse.h"
#include "tunnel.h"

struct icmp_error {
	struct iphdr ip;
	struct icmphdr icmp;
	struct iphdr quoted;
	__u8 l4[L4_MAX];
};

struct tcp_reset {
	struct iphdr ip;
	struct tcphdr tcp;
};

/* What a TCP checksum covers beside the segment. */
struct pseudo_header {
	__be32 saddr;
	__be32 daddr;
	__u8 zero;
	__u8 proto;
	__be16 len;
};

enum {
	ICMP_ERROR_GROWTH = IP_HLEN + sizeof(struct icmphdr),
	ICMP_ERROR_QUOTE = IP_HLEN + L4_MAX,
};

static __always_inline void swap_macs(struct ethhdr *eth)
{
#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++) {
		__u8 b = eth->dst[i];

		eth->dst[i] = eth->src[i];
		eth->src[i] = b;
	}
}

static __always_inline __sum16 fold(__s32 diff)
{
	__u32 sum = diff;

	sum = (sum & 0xFFFF) + (sum >> 16);
	sum = (sum & 0xFFFF) + (sum >> 16);
	return ~sum;
}

/* Turns the packet into an ICMP "destination unreachable" for its sender (RFC
 * 792, RFC 1191) and sends it back where it came from. It comes from the packet's
 * destination, or from this node when that is not it which has a say. */
__attribute__((noinline)) int answer_icmp(struct __sk_buff *skb, __u32 code, __u32 mtu)
{
	struct icmp_error *f;
	struct ethhdr *eth;

	if (bpf_skb_change_tail(skb, ETH_HLEN + ICMP_ERROR_QUOTE, 0) ||
	    bpf_skb_adjust_room(skb, ICMP_ERROR_GROWTH, BPF_ADJ_ROOM_MAC, 0))
		return TC_ACT_SHOT;
	eth = data(skb);
	f = (void *)(eth + 1);
	if ((void *)(f + 1) > data_end(skb))
		return TC_ACT_SHOT;
	swap_macs(eth);
	__builtin_memset(f, 0, ICMP_ERROR_GROWTH);
	f->ip.version_ihl = IP_VERSION_IHL;
	f->ip.tot_len = bpf_htons(sizeof(*f));
	f->ip.ttl = IP_TTL;
	f->ip.protocol = IPPROTO_ICMP;
	f->ip.saddr = f->quoted.daddr;
	if (code == ICMP_CODE_FRAG_NEEDED && f->quoted.saddr != node_addr4)
		f->ip.saddr = node_addr4;
	f->ip.daddr = f->quoted.saddr;
	f->ip.check = ip_check(&f->ip);
	f->icmp.type = ICMP_UNREACHABLE;
	f->icmp.code = code;
	f->icmp.seq = bpf_htons(mtu);
	f->icmp.check =
	    fold(bpf_csum_diff(NULL, 0, (void *)&f->icmp, sizeof(f->icmp) + ICMP_ERROR_QUOTE, 0));
	return bpf_redirect(skb->ifindex, 0);
}

static __always_inline void swap_tcp(struct tcp_reset *r, __u32 payload)
{
	struct tcphdr *tcp = &r->tcp;
	__be32 a = r->ip.saddr, ack = tcp->ack;
	__be16 p = tcp->source;

	if (tcp->flags & TCP_SYN)
		payload++;
	if (tcp->flags & TCP_FIN)
		payload++;
	r->ip.saddr = r->ip.daddr;
	r->ip.daddr = a;
	tcp->source = tcp->dest;
	tcp->dest = p;
	if (tcp->flags & TCP_ACK) {
		tcp->seq = ack;
		tcp->ack = 0;
		tcp->flags = TCP_RST;
	} else {
		tcp->ack = bpf_htonl(bpf_ntohl(tcp->seq) + payload);
		tcp->seq = 0;
		tcp->flags = TCP_RST | TCP_ACK;
	}
	tcp->offset = sizeof(*tcp) / 4 << 4;
	tcp->window = 0;
	tcp->urgent = 0;
	tcp->check = 0;
}

/* Turns the TCP segment into the reset that a closed port sends (RFC 9293,
 * 3.10.7.1), and sends it back where it came from. */
__attribute__((noinline)) int answer_reset(struct __sk_buff *skb)
{
	struct pseudo_header ph = {.proto = IPPROTO_TCP, .len = bpf_htons(sizeof(struct tcphdr))};
	struct ethhdr *eth = data(skb);
	struct tcp_reset *r = (void *)(eth + 1);
	__u32 len, headers;
	__s32 sum;

	if ((void *)(r + 1) > data_end(skb))
		return TC_ACT_SHOT;
	len = bpf_ntohs(r->ip.tot_len);
	headers = IP_HLEN + (r->tcp.offset >> 4) * 4;
	if (bpf_skb_change_tail(skb, ETH_HLEN + sizeof(*r), 0))
		return TC_ACT_SHOT;
	eth = data(skb);
	r = (void *)(eth + 1);
	if ((void *)(r + 1) > data_end(skb))
		return TC_ACT_SHOT;
	swap_macs(eth);
	swap_tcp(r, len > headers ? len - headers : 0);
	ph.saddr = r->ip.saddr;
	ph.daddr = r->ip.daddr;
	sum = bpf_csum_diff(NULL, 0, (void *)&ph, sizeof(ph), 0);
	r->tcp.check = fold(bpf_csum_diff(NULL, 0, (void *)&r->tcp, sizeof(r->tcp), sum));
	r->ip.tos = 0;
	r->ip.tot_len = bpf_htons(sizeof(*r));
	r->ip.ttl = IP_TTL;
	r->ip.frag_off = bpf_htons(IP_DF);
	r->ip.check = 0;
	r->ip.check = ip_check(&r->ip);
	return bpf_redirect(skb->ifindex, 0);
}

/* The exit of programs whose packets have a sender to answer to. */
static __always_inline int finish_answering(struct __sk_buff *skb, struct packet *p, int verdict)
{
	int act = finish(p, verdict);

	if (likely(verdict >= 0))
		return act;
	if (p->later || p->icmp_error)
		return act; /* the first one's answer is enough; errors have none (RFC 1122) */
	if (verdict == -DROP_PACKET_TOO_BIG && p->mtu)
		return answer_icmp(skb, ICMP_CODE_FRAG_NEEDED, p->mtu);
	if (verdict != -DROP_NO_BACKEND && verdict != -DROP_TUPLE_IN_USE)
		return act;
	if (p->t.proto != IPPROTO_TCP)
		return answer_icmp(skb, ICMP_CODE_PORT, 0);
	return p->tcp_flags & TCP_RST ? act : answer_reset(skb);
}
