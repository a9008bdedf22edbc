/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where a packet goes, and sending it there. */
#pragma once
#include "conntrack.h"
#include "icmp.h"
#include "ipcache.h"
#include "policy.h"
#include "tunnel.h"

/* A decision: the words to cache, and what they stand for. */
struct route {
	__u32 hop;           /* node id or HOP_* */
	__u32 epoch;         /* of what the hop was read from */
	__u32 identity;      /* of the destination */
	struct endpoint *ep; /* with HOP_LOCAL */
};

/* Finds the destination. Its epoch is read before the lookups. What is on no wire is
 * for nobody behind one, and least of all for this node's own loopback. */
static __always_inline int route4(struct packet *p, __be32 daddr, struct route *r)
{
	struct ip_entry *ip;

	r->epoch = ip_epoch4(daddr);
	r->ep = endpoint_by_addr4(daddr);
	if (r->ep) {
		r->hop = HOP_LOCAL;
		r->identity = r->ep->identity;
		return 0;
	}
	r->identity = ID_UNKNOWN;
	if (is_unroutable4(daddr))
		return DROP(p, DROP_UNKNOWN_DESTINATION);
	r->hop = HOP_WORLD;
	r->identity = ID_WORLD;
	ip = ipcache_lookup4(daddr);
	if (!ip)
		return 0;
	r->identity = ip->identity;
	if (ip->flags & IP_HOST)
		r->hop = HOP_HOST;
	else if (ip->node)
		r->hop = ip->node;
	else if (ip->flags & IP_CIDR)
		return DROP(p, DROP_UNKNOWN_DESTINATION); /* ours, and no pod has it */
	return 0;
}

/* Whether a pod's packet would be taken for a tunnel's: it is for the tunnel's port of
 * a tunnel endpoint, or of what is behind an external one, which may have addresses
 * of its own there. Those believe the addresses of nodes, which many a pod's packet
 * has outside. Such a flow is told nowhere but here: it is never cached. */
static __always_inline int forges_tunnel(const struct packet *p, __be32 daddr, __be16 dport,
                                         __u32 hop)
{
	struct node *node;

	if (likely(dport != tunnel_port || p->t.proto != IPPROTO_UDP))
		return 0;
	if (node_id_by_addr4(daddr))
		return 1;
	node = node_by_id(hop);
	return node && node->cluster == CLUSTER_EXTERNAL;
}

static __always_inline int set_macs(struct __sk_buff *skb, struct packet *p, const __u8 *dst,
                                    const __u8 *src)
{
	struct ethhdr *eth = data(skb);

	if ((void *)(eth + 1) > data_end(skb))
		return DROP(p, DROP_REWRITE_FAILED);
	__builtin_memcpy(eth->dst, dst, ETH_ALEN);
	__builtin_memcpy(eth->src, src, ETH_ALEN);
	return 0;
}

static __always_inline int to_endpoint(struct __sk_buff *skb, struct packet *p,
                                       const struct endpoint *ep)
{
	int ret = set_macs(skb, p, ep->pod_mac, ep->host_mac);

	return ret < 0 ? ret : bpf_redirect_peer(ep->ifindex, 0);
}

static __always_inline int to_own_host(struct __sk_buff *skb, struct packet *p)
{
	__u16 dst[3] = {host_mac[0], host_mac[1], host_mac[2]};
	__u16 src[3] = {net_mac[0], net_mac[1], net_mac[2]};
	int ret = set_macs(skb, p, (__u8 *)dst, (__u8 *)src);

	return ret < 0 ? ret : bpf_redirect(host_ifindex, BPF_F_INGRESS);
}

/* Whether a node is there and the packet fits. Asked before translation, so
 * that an ICMP answer quotes what the sender sent. */
static __always_inline int can_reach(struct __sk_buff *skb, struct packet *p, __u32 hop)
{
	struct node *node;

	if (hop == HOP_LOCAL || hop == HOP_HOST || hop == HOP_WORLD)
		return 0;
	node = node_by_id(hop);
	return node ? tunnel_fits(skb, p, node) : DROP(p, DROP_NO_TUNNEL_ENDPOINT);
}

static __always_inline int deliver(struct __sk_buff *skb, struct packet *p, const struct route *r,
                                   __u32 vni, __u32 hash)
{
	struct node *node;

	if (r->hop == HOP_LOCAL && r->ep)
		return to_endpoint(skb, p, r->ep);
	if (r->hop == HOP_HOST)
		return to_own_host(skb, p);
	if (r->hop == HOP_WORLD)
		return TC_ACT_OK;
	node = node_by_id(r->hop);
	return node ? tunnel_send(skb, p, node, r->hop, vni, hash)
	            : DROP(p, DROP_NO_TUNNEL_ENDPOINT);
}
