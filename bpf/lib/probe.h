/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Path probes: a UDP packet of identity health from node to node inside the
 * tunnel, to port 7 (echo, RFC 862). The program of the node that is asked sends
 * it back, whether or not an agent runs there; the answer, from port 7, goes to
 * the asking agent's socket, which sent the question to the tunnel's port.
 *
 * An answer is the question with outer and inner addresses and inner ports
 * swapped. Nothing is stripped: a packet that was just stripped cannot be wrapped
 * again. And nothing else is changed: a swap keeps all checksums as they are,
 * also one that is only half made (CHECKSUM_PARTIAL, normal from a veth). */
#pragma once
#include "ipcache.h"
#include "parse.h"
#include "tunnel.h"

#define PROBE_PORT bpf_htons(7)

static __always_inline int is_probe(const struct packet *p)
{
	return p->src_id == ID_HEALTH && p->t.proto == IPPROTO_UDP &&
	       (p->t.sport == PROBE_PORT || p->t.dport == PROBE_PORT);
}

static __always_inline void swap_addresses(struct iphdr *ip)
{
	__be32 a = ip->saddr;

	ip->saddr = ip->daddr;
	ip->daddr = a;
}

/* Sends a question back to the node that asked. */
static __always_inline int probe_answer(struct __sk_buff *skb, struct packet *p)
{
	struct tunnel_headers *outer = data(skb) + ETH_HLEN;
	struct iphdr *ip = data(skb) + TUNNEL_INNER;
	struct udphdr *udp = (void *)(ip + 1);
	__be16 port;

	if ((void *)(udp + 1) > data_end(skb))
		return DROP(p, DROP_MALFORMED);
	swap_addresses(&outer->ip);
	swap_addresses(ip);
	port = udp->source;
	udp->source = udp->dest;
	udp->dest = port;
	return bpf_redirect_neigh(underlay_ifindex, NULL, 0, 0);
}

/* Lets an answer, which has the outer ports of the question, to the socket that
 * asked. */
static __always_inline int probe_answered(struct __sk_buff *skb, struct packet *p)
{
	struct tunnel_headers *outer = data(skb) + ETH_HLEN;
	__be16 port;

	if ((void *)(outer + 1) > data_end(skb))
		return DROP(p, DROP_MALFORMED);
	port = outer->udp.source;
	outer->udp.source = outer->udp.dest;
	outer->udp.dest = port;
	return TC_ACT_OK;
}

/* A probe from the tunnel. Only nodes are answered, only at the address that
 * asked, and an answer is never answered. */
static __always_inline int probe(struct __sk_buff *skb, struct packet *p)
{
	struct node *node = node_by_id(node_id_by_addr4(p->outer));

	if (!node)
		return DROP(p, DROP_UNKNOWN_SENDER);
	if (node->cluster == CLUSTER_EXTERNAL)
		return DROP(p, DROP_SPOOFED_IDENTITY);
	if (p->t.saddr != p->outer)
		return DROP(p, DROP_SPOOFED_SOURCE);
	if (p->t.daddr != node_addr4)
		return DROP(p, DROP_UNKNOWN_DESTINATION);
	if (p->t.sport == p->t.dport)
		return DROP(p, DROP_MALFORMED);
	return p->t.sport == PROBE_PORT ? probe_answered(skb, p) : probe_answer(skb, p);
}
