/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* from_host: ingress of the inner end of the host veth, through which the host
 * reaches pods, here and on other nodes. */
#include "lib/arp.h"
#include "lib/deliver.h"
#include "lib/event.h"
#include "lib/reject.h"
#include "lib/related.h"
#include "lib/scratch.h"
#include "lib/slots.h"
#include "lib/translate.h"

/* The host's own packets come from its addresses. What it merely forwards is
 * judged as what it is. */
static __always_inline __u32 host_identity4(__be32 saddr)
{
	struct ip_entry *ip;

	if (saddr == node_addr4)
		return ID_HOST;
	ip = ipcache_lookup4(saddr);
	if (ip && ip->flags & IP_HOST)
		return ID_HOST;
	return ip && !ip->node ? outside_identity(ip) : ID_WORLD;
}

static __always_inline int host_route(struct packet *p, __be32 daddr, struct route *r)
{
	int ret = route4(p, daddr, r);

	p->dst_id = r->identity;
	if (ret < 0)
		return ret;
	if (r->hop == HOP_WORLD || r->hop == HOP_HOST)
		return DROP(p, DROP_NO_TUNNEL_ENDPOINT);
	if (r->hop != HOP_LOCAL && p->src_id != ID_HOST)
		return DROP(p, DROP_SPOOFED_SOURCE); /* no transit into the tunnel */
	if (r->ep)
		p->endpoint = r->ep->id;
	return 0;
}

/* Judges a packet with the (translated) tuple t. */
static __always_inline int host_judge(struct packet *p, const struct flow *f,
                                      const struct tuple4 *t, struct route *r)
{
	int reply = f->dir == FLOW_REPLY;

	if (!r->ep)
		return 0;
	return policy_verdict(p, r->ep, rules_word(r->ep->rule_set),
	                      reply ? DIR_EGRESS : DIR_INGRESS, p->src_id, t->saddr,
	                      reply ? t->sport : t->dport);
}

static __always_inline int host_record(struct packet *p, struct flow *f, struct ct_entry *e,
                                       __u16 flags)
{
	struct ct_entry fresh;
	int ret;

	if (!e) {
		ct_init(&fresh, p, f, flags);
		return ct_create(p, f, &fresh);
	}
	if (f->half_open) {
		ret = ct_advance(p, f, &e);
		if (ret < 0)
			return ret;
	}
	ct_touch(e, p, f->dir);
	return 0;
}

/* A packet to a service address: the host's own processes reach services too. */
static __always_inline int host_service(struct __sk_buff *skb, struct packet *p, struct flow *f,
                                        struct ct_entry *e, struct route *r)
{
	struct tuple4 to = p->t;
	struct choice c = {};
	int ret;

	if (e && !backend_alive(e)) {
		ct_delete(f);
		e = NULL;
	}
	f->dir = FLOW_FORWARD;
	if (e) {
		to.daddr = e->nat_addr.w[3];
		to.dport = e->nat_port;
	} else {
		ret = service_choose(p, &to, &c);
		if (ret < 0)
			return ret;
	}
	ret = host_route(p, to.daddr, r);
	if (ret < 0)
		return ret;
	ret = host_judge(p, f, &to, r);
	if (ret < 0)
		return ret;
	ret = e ? service_follow(p, f, &e, &to) : service_create(p, f, &to, &c, 0, r);
	if (ret < 0)
		return ret;
	if (e)
		ct_touch(e, p, FLOW_FORWARD);
	ret = can_reach(skb, p, r->hop);
	return ret < 0 ? ret : nat4(skb, p, &to);
}

/* What the host forwards may continue flows with the outside only: those of the
 * mesh use the tunnel, and the host's are its own. */
static __always_inline int host_plain(struct __sk_buff *skb, struct packet *p, struct flow *f,
                                      struct ct_entry *e, struct route *r)
{
	int ret = host_route(p, p->t.daddr, r);

	if (ret < 0)
		return ret;
	if (e && p->src_id != ID_HOST && !(e->flags & CT_WORLD))
		return DROP(p, DROP_SPOOFED_SOURCE);
	ret = host_judge(p, f, &p->t, r);
	if (ret < 0)
		return ret;
	ret = host_record(p, f, e, p->src_id == ID_HOST ? 0 : CT_WORLD);
	if (ret < 0)
		return ret;
	ret = can_reach(skb, p, r->hop);
	return ret < 0 ? ret : answer_nat4(skb, p, f, e);
}

/* The host speaks of everything; whom it forwards, of flows with the outside. */
static __always_inline int host_related(struct __sk_buff *skb, struct packet *p, struct flow *f,
                                        struct route *r)
{
	int ret = host_route(p, p->t.daddr, r);
	struct tuple4 quoted = {};
	struct ct_entry *e;

	if (ret < 0)
		return ret;
	pull(skb, ETH_HLEN + 2 * IP_HLEN + sizeof(struct icmphdr) + sizeof(struct udphdr));
	e = related_flow(skb, ETH_HLEN, p, f, &quoted);
	if (p->src_id != ID_HOST && !(e && e->flags & CT_WORLD))
		return DROP(p, DROP_UNRELATED_ICMP);
	if (p->src_id != ID_HOST && r->ep)
		ret = related_to(p, f, &quoted);
	if (ret < 0)
		return ret;
	ret = can_reach(skb, p, r->hop);
	if (!ret && e && e->flags & CT_NAT && f->dir == FLOW_FORWARD)
		ret = related_nat4(skb, p, QUOTED_DESTINATION, e->nat_addr.w[3], e->nat_port);
	return ret;
}

static __always_inline int host_flow(struct __sk_buff *skb, struct packet *p, struct flow *f,
                                     struct route *r)
{
	struct ct_entry *e;

	flow_key(f, &p->t);
	e = ct_find(f);
	if (e && ct_reopened(e, p)) {
		ct_delete(f);
		e = NULL;
	}
	if (!e)
		f->dir = FLOW_FORWARD;
	if (is_unasked(p, f))
		return DROP(p, DROP_UNASKED_REPLY);
	if (p->src_id == ID_HOST && (e ? e->flags & CT_SERVICE : frontend4(&p->t) != NULL))
		return host_service(skb, p, f, e, r);
	return host_plain(skb, p, f, e, r);
}

static __always_inline int host_ipv4(struct __sk_buff *skb, struct packet *p)
{
	struct route r = {};
	struct flow f = {};
	int ret = parse4(skb, ETH_HLEN, p);

	if (ret < 0)
		return ret;
	p->src_id = host_identity4(p->t.saddr);
	if (p->src_id != ID_HOST && (endpoint_by_addr4(p->t.saddr) || is_no_source4(p->t.saddr)))
		return DROP(p, DROP_SPOOFED_SOURCE); /* pods do not send by the host */
	ret = unlikely(p->icmp_error) ? host_related(skb, p, &f, &r) : host_flow(skb, p, &f, &r);
	return ret < 0 ? ret : deliver(skb, p, &r, ID_REMOTE_NODE, f.hash);
}

static __always_inline int host_packet(struct __sk_buff *skb, struct packet *p)
{
	struct ethhdr *eth;

	pull(skb, ETH_HLEN + IP_HLEN + L4_MAX);
	eth = data(skb);
	if ((void *)(eth + 1) > data_end(skb))
		return DROP(p, DROP_MALFORMED);
	if (likely(eth->proto == bpf_htons(ETH_P_IP)))
		return host_ipv4(skb, p);
	if (eth->proto == bpf_htons(ETH_P_ARP)) {
		__u16 mac[3] = {net_mac[0], net_mac[1], net_mac[2]};

		return answer_arp(skb, p, (__u8 *)mac, 0);
	}
	if (eth->proto == bpf_htons(ETH_P_IPV6))
		bpf_tail_call(skb, &slots, SLOT_FROM_HOST6);
	return DROP(p, DROP_UNSUPPORTED_PROTOCOL);
}

SEC("tc")
int from_host(struct __sk_buff *skb)
{
	struct packet *p = new_packet(skb, PROG_FROM_HOST, DIR_INGRESS);

	return p ? finish_answering(skb, p, host_packet(skb, p)) : TC_ACT_SHOT;
}
