/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Masquerade for IPv6: masquerade.h, which says why, under longer keys. What is
 * sent is struct packet6's to: the flow as it leaves, with the pod's address. */
#pragma once
#include "deliver6.h"
#include "icmp6.h"
#include "masquerade.h"

enum {
	IP6_SURE_MTU = 1280, /* what every link takes (RFC 8200, 5) */
};

struct snat6_key {
	struct addr remote;
	__be16 remote_port;
	__be16 port; /* of the node; for ICMPv6 the identifier */
	__u8 proto;
	__u8 pad[3];
};

struct snat6_entry {
	struct addr addr; /* of the pod */
	__be16 port;
	__u16 pad;
	__u32 created; /* jiffies */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct snat6_key);
	__type(value, struct snat6_entry);
} snat6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct snat6_key);
	__type(value, struct snat6_entry);
} snat6_open SEC(".maps");

static __always_inline struct addr outside_addr6(void)
{
	struct addr a = {.w = {snat_addr6[0], snat_addr6[1], snat_addr6[2], snat_addr6[3]}};

	return a;
}

static __always_inline int masquerades6(void)
{
	return snat_ports && (snat_addr6[0] | snat_addr6[1] | snat_addr6[2] | snat_addr6[3]);
}

/* See route_out. */
static __always_inline int route_out6(struct __sk_buff *skb, const struct packet6 *x)
{
	struct fib_question q = {.family = 10 /* AF_INET6 */, .ifindex = skb->ifindex};

	__builtin_memcpy(q.saddr, &x->to.saddr, sizeof(q.saddr));
	__builtin_memcpy(q.daddr, &x->to.daddr, sizeof(q.daddr));
	return way_out(skb, &q);
}

/* Whether the packet fits the way out. Nobody cuts packets of IPv6 but their senders.
 * Global: see nat4_write. */
__attribute__((noinline)) int snat_fits6(struct __sk_buff *skb)
{
	struct packet6 *x = packet6_in_hand();
	struct packet *p = packet_in_hand();
	__u32 len = skb->len - ETH_HLEN;

	if (len <= IP6_SURE_MTU)
		return OUT_UNDERLAY;
	if (!x || !p)
		return -DROP_REWRITE_FAILED;
	if (skb->gso_size)
		len = x->h.l4 + segment_header6(skb, p, x) + skb->gso_size;
	return fits_way(skb, p, len);
}

static __always_inline int snat_is6(const struct snat6_entry *s, const struct snat6_entry *e)
{
	return s && s->port == e->port && same_addr(&s->addr, &e->addr);
}

/* See snat_take. */
static __always_inline int snat_take6(const struct snat6_key *key, const struct snat6_entry *e,
                                      __u64 how)
{
	if (bpf_map_update_elem(&snat6_open, key, e, how))
		return 0;
	if (!bpf_map_lookup_elem(&snat6, key))
		return 1;
	bpf_map_delete_elem(&snat6_open, key);
	return 0;
}

/* See snat_pick. */
static __always_inline int snat_pick6(struct snat6_key *key, const struct snat6_entry *e)
{
	__u32 pick = bpf_get_prandom_u32(), oldest = 0, since = 0, i;
	struct snat6_entry *other;

	for (i = 0; i < SNAT_TRIES; i++) {
		__u32 port = snat_first + (pick + i * SNAT_STEP) % snat_ports;

		key->port = bpf_htons(port);
		if (bpf_map_lookup_elem(&snat6, key))
			continue;
		if (snat_take6(key, e, BPF_NOEXIST))
			return port & 0xFFFF;
		other = bpf_map_lookup_elem(&snat6_open, key);
		if (other && (!oldest || (__s32)(other->created - since) < 0)) {
			oldest = port;
			since = other->created;
		}
	}
	key->port = bpf_htons(oldest);
	return oldest && snat_take6(key, e, BPF_ANY) ? oldest & 0xFFFF : -DROP_NO_SNAT_PORT;
}

/* The place of the packet's flow, at a port of the node. */
static __always_inline void snat_place6(const struct packet6 *x, __u32 port, struct snat6_key *key,
                                        struct snat6_entry *e)
{
	key->remote = x->to.daddr;
	key->remote_port = x->to.dport;
	key->port = bpf_htons(port);
	key->proto = x->to.proto;
	e->addr = x->to.saddr;
	e->port = x->to.sport;
	e->created = bpf_jiffies64();
}

/* See snat_open. */
__attribute__((noinline)) int snat_open6(struct __sk_buff *skb)
{
	struct packet6 *x = packet6_in_hand();
	struct snat6_entry e = {};
	struct snat6_key key = {};
	int ret;

	if (!x)
		return -DROP_REWRITE_FAILED;
	ret = route_out6(skb, x);
	if (ret != OUT_UNDERLAY)
		return ret;
	if (x->to.proto != IPPROTO_TCP && x->to.proto != IPPROTO_UDP &&
	    x->to.proto != IPPROTO_ICMPV6)
		return -DROP_UNSUPPORTED_PROTOCOL;
	snat_place6(x, 0, &key, &e);
	return snat_pick6(&key, &e);
}

/* See snat_promote. */
static __always_inline int snat_promote6(const struct snat6_key *key, const struct snat6_entry *e)
{
	__u32 port = bpf_ntohs(key->port);
	long err = bpf_map_update_elem(&snat6, key, e, BPF_NOEXIST);

	if (err == -EBUSY || err == -EEXIST)
		return port;
	if (err)
		return -DROP_NO_SNAT_PORT;
	bpf_map_delete_elem(&snat6_open, key);
	return port | SNAT_KEPT;
}

/* See snat_keep. */
__attribute__((noinline)) int snat_keep6(__u32 port)
{
	struct packet6 *x = packet6_in_hand();
	struct snat6_entry e = {};
	struct snat6_key key = {};
	int ret;

	if (!x)
		return -DROP_REWRITE_FAILED;
	snat_place6(x, port, &key, &e);
	if (snat_is6(bpf_map_lookup_elem(&snat6, &key), &e))
		return port | SNAT_KEPT;
	if (!snat_is6(bpf_map_lookup_elem(&snat6_open, &key), &e) &&
	    !snat_take6(&key, &e, BPF_NOEXIST)) {
		if (snat_is6(bpf_map_lookup_elem(&snat6, &key), &e))
			return port | SNAT_KEPT;
		ret = snat_pick6(&key, &e);
		if (ret < 0)
			return ret;
	}
	return port & SNAT_KEPT ? snat_promote6(&key, &e) : bpf_ntohs(key.port);
}

/* See snat_flow. One that is established with its own address keeps that. */
static __always_inline int snat_flow6(struct __sk_buff *skb, struct packet *p, const struct flow *f,
                                      struct ct_entry *e)
{
	int ret;

	if (!masquerades6() || (e->snat_port ? !e->snat_open || p->opens : !f->half_open))
		return 0;
	if (!e->snat_port)
		ret = snat_open6(skb);
	else
		ret = snat_keep6(e->snat_port | (f->half_open ? 0 : SNAT_KEPT));
	return snat_note(p, e, ret);
}

/* Sends the packet, or the error, out with the node's address and port. What is
 * translated beside (change6) is: an error's other end here before, a packet's in to. */
static __always_inline int snat_send6(struct __sk_buff *skb, struct packet *p, struct packet6 *x)
{
	const __u32 at = ETH_HLEN + __builtin_offsetof(struct ipv6hdr, hop_limit);
	struct addr node = outside_addr6();
	__be16 port = bpf_htons(x->out.snat);
	__u8 hops = x->hop_limit - 1;
	int ret;

	if (p->icmp_error) {
		ret = related_nat6(skb, p, x, QUOTED_DESTINATION, &node, port);
	} else {
		x->to.saddr = node;
		x->to.sport = port;
		ret = nat6(skb, p);
	}
	if (ret < 0)
		return ret;
	if (bpf_skb_store_bytes(skb, at, &hops, sizeof(hops), 0))
		return DROP(p, DROP_REWRITE_FAILED);
	return bpf_redirect_neigh(underlay_ifindex, NULL, 0, 0);
}

/* See snat_find. */
static __always_inline struct snat6_entry *snat_find6(const struct snat6_key *key, int *open)
{
	struct snat6_entry *s = bpf_map_lookup_elem(&snat6, key);

	*open = !s;
	if (s)
		return s;
	s = bpf_map_lookup_elem(&snat6_open, key);
	return s ? s : bpf_map_lookup_elem(&snat6, key);
}
