/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* VXLAN (RFC 7348); the VNI is the source's identity. The headers are written here,
 * or by the kernel's device (device.h), with the same bytes.
 *
 * Where we write them, the receiver's rewrite leaves the UDP-tunnel mark of
 * segmentation offload on the packet, so UDP segmentation (tx-udp-segmentation) must
 * be off at the pod's end of its veth, or QUIC-like senders lose packets; and a
 * stripped packet cannot be wrapped again, so nothing here forwards from tunnel to
 * tunnel. */
#pragma once
#include "config.h"
#include "device.h"
#include "ipcache.h"
#include "parse.h"

struct vxlanhdr {
	__be32 flags;
	__be32 vni; /* vni 24 | 0 */
};

#define VXLAN_VNI_VALID bpf_htonl(0x08000000)
#define VXLAN_RESERVED  bpf_htonl(0xFF) /* of vni */

struct tunnel_headers {
	struct iphdr ip;
	struct udphdr udp;
	struct vxlanhdr vxlan;
	__u8 inner[sizeof(struct ethhdr)]; /* an ethhdr; bytes, to end unpadded */
	__u8 end[2];
};

enum {
	TUNNEL_OVERHEAD = __builtin_offsetof(struct tunnel_headers, end),
	TUNNEL_INNER = ETH_HLEN + TUNNEL_OVERHEAD, /* offset of the inner IP header */
	/* What every underlay takes (RFC 791 has all hosts take it). */
	SURE_MTU = 576,
	/* the source ports of outer headers, without the last, as the kernel's
	 * udp_flow_src_port has it */
	TUNNEL_PORT_FIRST = 0x8000,
	TUNNEL_PORT_LAST = 0xFFFF,
	ECN_CE = 3,
	ECN_ECT0 = 2,
};

_Static_assert(TUNNEL_OVERHEAD == 50, "VXLAN over IPv4 takes 50 bytes");

static __always_inline __u32 l4_hlen(struct __sk_buff *skb, const struct packet *p)
{
	struct tcphdr *tcp = data(skb) + ETH_HLEN + IP_HLEN;

	if (p->t.proto != IPPROTO_TCP)
		return sizeof(struct udphdr);
	if ((void *)(tcp + 1) > data_end(skb))
		return sizeof(*tcp);
	return (tcp->offset >> 4) * 4;
}

/* Whether a packet fits any path to the node: most small ones do, and a SYN wants
 * to know the path's MTU anyway. */
static __always_inline int fits_surely(const struct __sk_buff *skb, const struct packet *p,
                                       const struct node *node)
{
	return skb->len <= SURE_MTU - TUNNEL_OVERHEAD && !(p->tcp_flags & TCP_SYN) &&
	       node->mtu - 1 >= SURE_MTU - 1; /* 0 is unknown */
}

/* Whether the packet fits with the tunnel's headers; nothing else checks that
 * on a redirect. A packet that is cut later counts by its segments. */
static __always_inline int tunnel_fits(struct __sk_buff *skb, struct packet *p,
                                       const struct node *node)
{
	__u32 mtu = 0, len = skb->len - ETH_HLEN;

	if (likely(fits_surely(skb, p, node)))
		return 0;
	if (skb->gso_size)
		len = IP_HLEN + l4_hlen(skb, p) + skb->gso_size;
	if (bpf_check_mtu(skb, underlay_ifindex, &mtu, 0, 0) < 0 && !mtu)
		return DROP(p, DROP_NO_TUNNEL_ENDPOINT);
	if (node->mtu && node->mtu < mtu)
		mtu = node->mtu;
	if (p->tcp_flags & TCP_SYN)
		p->mss = mtu - TUNNEL_OVERHEAD - IP_HLEN - sizeof(struct tcphdr);
	if (likely(len + TUNNEL_OVERHEAD <= mtu))
		return 0;
	p->mtu = mtu - TUNNEL_OVERHEAD;
	return DROP(p, DROP_PACKET_TOO_BIG);
}

static __always_inline __sum16 ip_check(const struct iphdr *ip)
{
	const __u16 *w = (const __u16 *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < IP_HLEN / 2; i++)
		sum += w[i];
	sum = (sum & 0xFFFF) + (sum >> 16);
	sum = (sum & 0xFFFF) + (sum >> 16);
	return ~sum;
}

/* A hash that no kernel takes for one that it has to make itself. */
static __always_inline __u32 tunnel_hash(__u32 hash)
{
	return hash ? hash : 1;
}

static __always_inline __u16 tunnel_source(__u32 hash)
{
	hash ^= hash << 16;
	return ((__u64)hash * (TUNNEL_PORT_LAST - TUNNEL_PORT_FIRST) >> 32) + TUNNEL_PORT_FIRST;
}

/* DSCP and ECN as the sender set them; that a router has met congestion already
 * stays in the inner header, and the outer may say it anew (RFC 3168, 9.1.1). */
static __always_inline __u8 tunnel_tos(__u8 tos)
{
	return (tos & ECN_CE) == ECN_CE ? tos ^ ECN_CE ^ ECN_ECT0 : tos;
}

/* The receiver writes the pod's addresses; these only have to be valid. */
static __always_inline void fill_inner(struct ethhdr *inner, __be16 proto,
                                       const struct vtep *external)
{
	__builtin_memset(inner, 0, sizeof(*inner));
	inner->dst[0] = 0x02;
	inner->src[0] = 0x02;
	inner->src[5] = 0x01;
	inner->proto = proto;
	if (unlikely(external))
		__builtin_memcpy(inner->dst, external->mac, ETH_ALEN);
}

static __always_inline void fill_headers(struct tunnel_headers *h, __u16 len, __u8 tos,
                                         __be32 remote, __u32 vni, __u32 hash)
{
	h->ip.version_ihl = IP_VERSION_IHL;
	h->ip.tos = tunnel_tos(tos);
	h->ip.tot_len = bpf_htons(len);
	h->ip.id = 0;
	h->ip.frag_off = bpf_htons(IP_DF);
	h->ip.ttl = IP_TTL;
	h->ip.protocol = IPPROTO_UDP;
	h->ip.check = 0;
	h->ip.saddr = node_addr4;
	h->ip.daddr = remote;
	h->ip.check = ip_check(&h->ip);
	h->udp.source = bpf_htons(tunnel_source(hash));
	h->udp.dest = tunnel_port;
	h->udp.len = bpf_htons(len - IP_HLEN);
	h->udp.check = 0;
	h->vxlan.flags = VXLAN_VNI_VALID;
	h->vxlan.vni = bpf_htonl(vni << 8);
}

struct mss_option {
	__u8 kind;
	__u8 len;
	__be16 mss;
};

enum {
	TCP_OPTIONS = 20,     /* that are looked at */
	TCP_OPTIONS_MAX = 40, /* bytes */
	TCP_MASK = 127,       /* of an offset behind an option that begins in a header */
};

/* Read anew each time: what the verifier learns of it would make states differ. */
static __always_inline __u32 tcp_length(const struct tcphdr *tcp)
{
	return (READ_ONCE(tcp->offset) >> 4) * 4;
}

/* Lowers the segment size that a SYN offers to what fits the path, so that what
 * the other side sends needs no ICMP error. l4 is where the TCP header is, at an even
 * byte; an option may start at an odd one, and the checksum counts in words. Global:
 * see nat4_write. */
__attribute__((noinline)) int clamp_mss(struct __sk_buff *skb, __u32 l4, __u32 mss)
{
	__u32 at = sizeof(struct tcphdr), i;
	struct mss_option o;
	struct tcphdr tcp;
	__be16 from, to;

	if (bpf_skb_load_bytes(skb, l4, &tcp, sizeof(tcp)))
		return 0;
	for (i = 0; i < TCP_OPTIONS && at + sizeof(o) <= tcp_length(&tcp); i++) {
		if (bpf_skb_load_bytes(skb, l4 + at, &o, sizeof(o)) || o.kind == TCP_OPTION_END)
			return 0;
		if (o.kind == TCP_OPTION_NOP) {
			at++;
			continue;
		}
		if (o.len < 2 || o.len > TCP_OPTIONS_MAX)
			return 0;
		if (o.kind == TCP_OPTION_MSS && o.len == TCP_OPTION_MSS_LEN)
			break;
		/* It is never more; all sums look alike to the verifier. */
		at = (at + o.len) & TCP_MASK;
	}
	if (i == TCP_OPTIONS || at + sizeof(o) > tcp_length(&tcp) || bpf_ntohs(o.mss) <= mss)
		return 0;
	from = o.mss;
	o.mss = bpf_htons(mss);
	to = o.mss;
	if (at & 1) {
		from = __builtin_bswap16(from);
		to = __builtin_bswap16(to);
	}
	if (bpf_l4_csum_replace(skb, l4 + __builtin_offsetof(struct tcphdr, check), from, to,
	                        sizeof(to)))
		return -1;
	return bpf_skb_store_bytes(skb, l4 + at, &o, sizeof(o), 0) ? -1 : 0;
}

/* What an external endpoint wants to see; NULL for a node. One that has no place
 * in the map is not spoken to: *ret is a drop then. */
static __always_inline struct vtep *external_end(struct packet *p, const struct node *node,
                                                 __u32 hop, int *ret)
{
	struct vtep *v;

	if (likely(node->cluster != CLUSTER_EXTERNAL))
		return NULL;
	v = bpf_map_lookup_elem(&vteps, &hop);
	if (!v)
		*ret = DROP(p, DROP_NO_TUNNEL_ENDPOINT);
	return v;
}

/* Wraps the packet, which is of proto and has its layer 4 at l4, and sends it to
 * the node. tunnel_fits was asked before. */
static __always_inline int tunnel_wrap(struct __sk_buff *skb, struct packet *p,
                                       const struct node *node, __u32 hop, __u32 vni, __u32 hash,
                                       __u32 l4, __be16 proto)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |
	              BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
	              ((__u64)ETH_HLEN << BPF_ADJ_ROOM_ENCAP_L2_SHIFT) | encap_extra_flags;
	__be32 remote = node->addr.w[3];
	struct tunnel_headers *h;
	int ret = 0;
	struct vtep *external = external_end(p, node, hop, &ret);

	if (ret < 0)
		return ret;
	if (!remote)
		return DROP(p, DROP_NO_TUNNEL_ENDPOINT);
	if (unlikely(p->mss) && clamp_mss(skb, l4, p->mss))
		return DROP(p, DROP_REWRITE_FAILED);
	if (unlikely(external))
		vni = external->vni;
	hash = tunnel_hash(hash);
	if (tunnel_ifindex) {
		struct ethhdr *eth = data(skb);

		if ((void *)(eth + 1) > data_end(skb))
			return DROP(p, DROP_REWRITE_FAILED);
		fill_inner(eth, proto, external);
		return device_send(skb, p, remote, vni, hash);
	}
	if (bpf_skb_adjust_room(skb, TUNNEL_OVERHEAD, BPF_ADJ_ROOM_MAC, flags))
		return DROP(p, DROP_REWRITE_FAILED);
	h = data(skb) + ETH_HLEN;
	if ((void *)(h + 1) > data_end(skb))
		return DROP(p, DROP_REWRITE_FAILED);
	fill_headers(h, skb->len - ETH_HLEN, p->tos, remote, vni, hash);
	fill_inner((struct ethhdr *)h->inner, proto, external);
	if (proto != bpf_htons(ETH_P_IP))
		((struct ethhdr *)((void *)h - ETH_HLEN))->proto = bpf_htons(ETH_P_IP);
	return bpf_redirect_neigh(underlay_ifindex, NULL, 0, 0);
}

static __always_inline int tunnel_send(struct __sk_buff *skb, struct packet *p,
                                       const struct node *node, __u32 hop, __u32 vni, __u32 hash)
{
	return tunnel_wrap(skb, p, node, hop, vni, hash, ETH_HLEN + IP_HLEN, bpf_htons(ETH_P_IP));
}

/* Takes the tunnel's headers off; what is left starts with an Ethernet header. */
static __always_inline int tunnel_strip(struct __sk_buff *skb, struct packet *p)
{
	if (bpf_skb_adjust_room(skb, -TUNNEL_OVERHEAD, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return DROP(p, DROP_REWRITE_FAILED);
	pull(skb, ETH_HLEN + IP_HLEN + L4_MAX);
	return 0;
}

/* What comes from an external endpoint has the VNI that was declared for it and a
 * source that is behind it, and is of the outside: it has the identity that
 * policy gave its prefix, else world. Only pods are behind our side of such a
 * tunnel; the node itself gets nothing but answers, which the caller sees to. */
static __always_inline int check_external(struct packet *p, __u32 sender)
{
	struct vtep *v = bpf_map_lookup_elem(&vteps, &sender);
	struct ip_entry *ip;

	if (!v || p->src_id != v->vni)
		return DROP(p, DROP_SPOOFED_IDENTITY);
	ip = ipcache_lookup4(p->t.saddr);
	if (!ip || ip->node != sender)
		return DROP(p, DROP_SPOOFED_SOURCE);
	p->src_id = outside_identity(ip);
	return 0;
}

/* Whether an ICMP error from the tunnel is by one who knows of a packet to daddr:
 * whom it was for, or, unless it is a workload, whose traffic the sender carries. */
static __always_inline int knows_packet(const struct packet *p, __u32 sender, __be32 daddr)
{
	struct ip_entry *ip;

	if (p->t.saddr == daddr)
		return 1;
	if (is_workload(p->src_id))
		return 0;
	ip = ipcache_lookup4(daddr);
	return ip && ip->node == sender;
}

/* Whether the sender may send from this source with this identity: a workload
 * of the sender's own cluster from an address behind the sender, or the node
 * itself from an address of its own. */
static __always_inline int check_sender(struct packet *p, __u32 sender, const struct node *node)
{
	__u32 id = p->src_id;
	struct ip_entry *ip;

	if (unlikely(node->cluster == CLUSTER_EXTERNAL))
		return check_external(p, sender);
	if (id <= ID_MAX_RESERVED && id != ID_REMOTE_NODE && id != ID_HEALTH)
		return DROP(p, DROP_SPOOFED_IDENTITY);
	if (id > ID_MAX_RESERVED && id >> identity_shift != node->cluster)
		return DROP(p, DROP_SPOOFED_IDENTITY);
	ip = ipcache_exact4(p->t.saddr);
	if (id <= ID_MAX_RESERVED) {
		if (p->t.saddr == node->addr.w[3] ||
		    (ip && ip->node == sender && ip->flags & IP_REMOTE_NODE))
			return 0;
		return DROP(p, DROP_SPOOFED_SOURCE);
	}
	if (ip) {
		if (ip->node != sender || ip->flags & IP_REMOTE_NODE)
			return DROP(p, DROP_SPOOFED_SOURCE);
	} else {
		ip = ipcache_prefix4(p->t.saddr);
		if (!ip || ip->node != sender || !(ip->flags & IP_CIDR))
			return DROP(p, DROP_SPOOFED_SOURCE);
	}
	if (!bpf_map_lookup_elem(&identities, &id))
		return DROP(p, DROP_IDENTITY_UNKNOWN);
	return 0;
}
