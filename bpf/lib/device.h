/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The other make of the tunnel's headers: the kernel's collect-metadata VXLAN
 * device writes and takes them off, and we say and hear what is in them. Those that
 * it writes are those of fill_headers but for the outer IP header's id. */
#pragma once
#include "config.h"
#include "parse.h"
#include "scratch.h"

enum {
	/* skb->mark of what from_overlay lets up to the device: the device's socket also
	 * hears what came by other ways, past the underlay's program. Marks do not come
	 * over a wire, and none is kept. No bit of it is one of Kubernetes' own. */
	TUNNEL_MARK = 0x2857,
};

static __always_inline int device_send(struct __sk_buff *skb, struct packet *p, __be32 remote,
                                       __u32 vni, __u32 hash)
{
	struct in_hand *h = in_hand();
	struct tunnel_key *key;

	if (!h)
		return DROP(p, DROP_REWRITE_FAILED);
	key = &h->key; /* the rest of it stays zero */
	key->id = vni;
	key->remote = bpf_ntohl(remote);
	key->tos = p->tos;
	key->ttl = IP_TTL;
	key->local = bpf_ntohl(node_addr4);
	if (bpf_skb_set_tunnel_key(skb, key, tunnel_key_size,
	                           BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT))
		return DROP(p, DROP_REWRITE_FAILED);
	bpf_set_hash(skb, hash); /* the outer source port is made of it */
	return bpf_redirect(tunnel_ifindex, 0);
}

/* Notes who sent a packet that the device has taken the headers off, and as whom. */
static __always_inline int device_received(struct __sk_buff *skb, struct packet *p)
{
	struct { /* of a tunnel_key; every kernel gives that much */
		__u32 id;
		__u32 remote;
	} key;

	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		return DROP(p, DROP_STRAY_TUNNEL); /* it came by no tunnel, or by one over IPv6 */
	p->src_id = key.id;
	p->outer = bpf_htonl(key.remote);
	return 0;
}
