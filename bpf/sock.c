/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* sock_*: service addresses at the socket. A process that connects or sends to
 * one is connected to a backend before there is a packet, and goes on seeing the
 * service's address as its peer.
 *
 * What cannot be balanced here goes out untranslated and is balanced, or
 * answered, at the pod's or the host's device: services without backends, and
 * those whose clients stay with a backend, for here the client's address is not
 * known yet. */
#include "lib/service.h"

/* What a socket is connected to, or has sent to, in place of a service. */
struct sock_key {
	__u64 cookie;
	struct addr addr; /* the backend */
	__be16 port;
	__u8 proto;
	__u8 pad[5];
};

enum sock_flags {
	SOCK_CONNECTED = 1 << 0,
};

/* What a connected socket is connected to, in place of a service. There is one for
 * a socket: connecting again replaces it, closing removes it. */
struct sock_link {
	struct addr backend;
	struct addr service;
	__be16 backend_port;
	__be16 service_port;
	__u32 frontend;
	__u32 epoch; /* of the frontend, when the backend was chosen */
	__u8 proto;
	__u8 pad[3];
};

/* By cookie. Nothing is pushed out of it: sockets that find it full are among
 * sock_peers. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct sock_link);
} sock_links SEC(".maps");

struct sock_peer {
	struct addr addr; /* the service */
	__be16 port;
	__u16 flags; /* enum sock_flags */
	__u32 frontend;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct sock_key);
	__type(value, struct sock_peer);
} sock_peers SEC(".maps");

enum {
	SOCK_PROCEED = 1,
	SOCK_ESTABLISHED = 1, /* TCP_ESTABLISHED, of connected datagram sockets too */
};

/* Remembers what a connected socket is connected to. epoch is the frontend's, read
 * before its backends. */
static __always_inline int sock_connected(const struct sock_key *key, const struct sock_peer *peer,
                                          __u32 epoch)
{
	struct sock_link link = {.backend = key->addr,
	                         .service = peer->addr,
	                         .backend_port = key->port,
	                         .service_port = peer->port,
	                         .frontend = peer->frontend,
	                         .epoch = epoch,
	                         .proto = key->proto};

	return bpf_map_update_elem(&sock_links, &key->cookie, &link, BPF_ANY);
}

/* Where a socket goes. */
struct sock_end {
	struct addr addr;
	__be16 port;
};

static __always_inline int is_mapped(const struct addr *a)
{
	return a->w[2] == V4_MAPPED && !a->w[1] && !a->w[0];
}

/* What a datagram socket that connects to the same service again is connected to
 * already: it stays there for as long as the service's backends are the same, as
 * its packets would. A stream's first try may have failed, so it gets another. */
static __always_inline struct sock_link *sock_again(const struct frontend_key *asked, __u64 cookie,
                                                    __u32 frontend, __u32 epoch)
{
	struct sock_link *known;

	if (asked->proto != IPPROTO_UDP)
		return NULL;
	known = bpf_map_lookup_elem(&sock_links, &cookie);
	if (known && known->frontend == frontend && known->epoch == epoch &&
	    same_addr(&known->service, &asked->addr) && known->service_port == asked->port)
		return known;
	return NULL;
}

/* Connects the socket to a backend of the family that it asked for, and returns
 * whether it did. */
static __always_inline int sock_connect(struct bpf_sock_addr *ctx, const struct frontend_key *asked,
                                        const struct frontend *fe, struct sock_end *to)
{
	struct sock_key key = {.proto = asked->proto, .cookie = bpf_get_socket_cookie(ctx)};
	struct sock_peer peer = {.addr = asked->addr,
	                         .port = asked->port,
	                         .flags = SOCK_CONNECTED,
	                         .frontend = fe->number};
	__u32 epoch = service_epoch(fe->number), number;
	struct sock_link *known = sock_again(asked, key.cookie, fe->number, epoch);
	struct backend *b;

	if (known) {
		to->addr = known->backend;
		to->port = known->backend_port;
		return 1;
	}
	b = slot_backend(fe, bpf_get_prandom_u32(), &number);
	if (!b || is_mapped(&b->addr) != is_mapped(&asked->addr))
		return 0;
	key.addr = b->addr;
	key.port = b->port;
	if (sock_connected(&key, &peer, epoch) &&
	    bpf_map_update_elem(&sock_peers, &key, &peer, BPF_ANY))
		return 0;
	to->addr = key.addr;
	to->port = key.port;
	return 1;
}

/* Sends a socket's datagram to a backend: the same for as long as the service's
 * backends are the same. A backend of several services shows the one that was
 * sent to last. */
static __always_inline int sock_send(struct bpf_sock_addr *ctx, const struct frontend_key *asked,
                                     const struct frontend *fe, struct sock_end *to)
{
	struct sock_key key = {.proto = asked->proto, .cookie = bpf_get_socket_cookie(ctx)};
	struct sock_peer peer = {.addr = asked->addr, .port = asked->port, .frontend = fe->number};
	__u32 pick = ((__u32)key.cookie ^ asked->addr.w[1] ^ asked->addr.w[3] ^ asked->port) *
	             0x9E3779B1,
	      number;
	struct backend *b = pick_backend(fe, pick, &number);
	struct sock_peer *known;

	if (!b || is_mapped(&b->addr) != is_mapped(&asked->addr))
		return 0;
	key.addr = b->addr;
	key.port = b->port;
	known = bpf_map_lookup_elem(&sock_peers, &key);
	if (!(known && known->port == peer.port && same_addr(&known->addr, &peer.addr)) &&
	    bpf_map_update_elem(&sock_peers, &key, &peer, BPF_ANY))
		return 0;
	to->addr = key.addr;
	to->port = key.port;
	return 1;
}

/* The service that is balanced at the socket. */
static __always_inline struct frontend *sock_frontend(const struct frontend_key *asked)
{
	struct frontend *fe;

	if (asked->proto != IPPROTO_TCP && asked->proto != IPPROTO_UDP)
		return NULL;
	fe = bpf_map_lookup_elem(&services, asked);
	return fe && !fe->affinity ? fe : NULL;
}

static __always_inline int sock_is_connected(const struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = (struct bpf_sock *)(long)ctx->sk;

	return sk->state == SOCK_ESTABLISHED;
}

/* A datagram socket that is connected may connect again, to what is no service.
 * New ones are let off a cookie and two lookups for nothing. */
static __always_inline void sock_unlink(struct bpf_sock_addr *ctx, const struct frontend_key *asked)
{
	struct sock_key key = {.addr = asked->addr, .port = asked->port, .proto = asked->proto};

	if (!sock_is_connected(ctx))
		return;
	key.cookie = bpf_get_socket_cookie(ctx);
	if (bpf_map_lookup_elem(&sock_links, &key.cookie))
		bpf_map_delete_elem(&sock_links, &key.cookie);
	if (bpf_map_lookup_elem(&sock_peers, &key))
		bpf_map_delete_elem(&sock_peers, &key);
}

/* Whether a socket that asks for this goes somewhere else. */
static __always_inline int sock_to_backend(struct bpf_sock_addr *ctx,
                                           const struct frontend_key *asked, __u16 flags,
                                           struct sock_end *to)
{
	struct frontend *fe = sock_frontend(asked);

	if (!(flags & SOCK_CONNECTED))
		return fe && sock_send(ctx, asked, fe, to);
	if (fe && sock_connect(ctx, asked, fe, to))
		return 1;
	if (asked->proto == IPPROTO_UDP)
		sock_unlink(ctx, asked);
	return 0;
}

/* The service where the socket's peer, *end, is its backend. What a socket has sent
 * to before it was connected is nothing to it any more. */
static __always_inline int sock_to_service(struct bpf_sock_addr *ctx, struct sock_end *end,
                                           int connected)
{
	struct sock_key key = {.addr = end->addr, .proto = ctx->protocol, .port = end->port};
	struct sock_link *link;
	struct sock_peer *peer;

	key.cookie = bpf_get_socket_cookie(ctx);
	link = bpf_map_lookup_elem(&sock_links, &key.cookie);
	if (link && same_addr(&link->backend, &end->addr) && link->backend_port == key.port) {
		end->addr = link->service;
		end->port = link->service_port;
		return 1;
	}
	peer = bpf_map_lookup_elem(&sock_peers, &key);
	if (!peer || (connected && !(peer->flags & SOCK_CONNECTED)))
		return 0;
	end->addr = peer->addr;
	end->port = peer->port;
	return 1;
}

static __always_inline void sock_ask4(struct bpf_sock_addr *ctx, __u16 flags)
{
	struct frontend_key asked = {
	    .addr = addr4(ctx->user_ip4), .port = (__be16)ctx->user_port, .proto = ctx->protocol};
	struct sock_end to;

	if (!sock_to_backend(ctx, &asked, flags, &to))
		return;
	ctx->user_ip4 = to.addr.w[3];
	ctx->user_port = to.port;
}

static __always_inline void sock_show4(struct bpf_sock_addr *ctx, int connected)
{
	struct sock_end end = {.addr = addr4(ctx->user_ip4), .port = (__be16)ctx->user_port};

	if (!sock_to_service(ctx, &end, connected))
		return;
	ctx->user_ip4 = end.addr.w[3];
	ctx->user_port = end.port;
}

/* The address that an IPv6 socket names; it may be a mapped one. */
static __always_inline struct addr sock_addr6(const struct bpf_sock_addr *ctx)
{
	struct addr a;

	a.w[0] = ctx->user_ip6[0];
	a.w[1] = ctx->user_ip6[1];
	a.w[2] = ctx->user_ip6[2];
	a.w[3] = ctx->user_ip6[3];
	return a;
}

static __always_inline void sock_set6(struct bpf_sock_addr *ctx, const struct sock_end *to)
{
	ctx->user_ip6[0] = to->addr.w[0];
	ctx->user_ip6[1] = to->addr.w[1];
	ctx->user_ip6[2] = to->addr.w[2];
	ctx->user_ip6[3] = to->addr.w[3];
	ctx->user_port = to->port;
}

static __always_inline void sock_ask6(struct bpf_sock_addr *ctx, __u16 flags)
{
	struct frontend_key asked = {
	    .addr = sock_addr6(ctx), .port = (__be16)ctx->user_port, .proto = ctx->protocol};
	struct sock_end to;

	if (sock_to_backend(ctx, &asked, flags, &to))
		sock_set6(ctx, &to);
}

static __always_inline void sock_show6(struct bpf_sock_addr *ctx, int connected)
{
	struct sock_end end = {.addr = sock_addr6(ctx), .port = (__be16)ctx->user_port};

	if (sock_to_service(ctx, &end, connected))
		sock_set6(ctx, &end);
}

SEC("cgroup/connect4")
int sock_connect4(struct bpf_sock_addr *ctx)
{
	sock_ask4(ctx, SOCK_CONNECTED);
	return SOCK_PROCEED;
}

SEC("cgroup/sendmsg4")
int sock_sendmsg4(struct bpf_sock_addr *ctx)
{
	sock_ask4(ctx, 0);
	return SOCK_PROCEED;
}

SEC("cgroup/recvmsg4")
int sock_recvmsg4(struct bpf_sock_addr *ctx)
{
	sock_show4(ctx, sock_is_connected(ctx));
	return SOCK_PROCEED;
}

SEC("cgroup/getpeername4")
int sock_peername4(struct bpf_sock_addr *ctx)
{
	sock_show4(ctx, 1);
	return SOCK_PROCEED;
}

/* IPv6 sockets come here also for the IPv4 addresses that they name, mapped; only
 * what they send to one without being connected comes by sock_sendmsg4. */
SEC("cgroup/connect6")
int sock_connect6(struct bpf_sock_addr *ctx)
{
	sock_ask6(ctx, SOCK_CONNECTED);
	return SOCK_PROCEED;
}

SEC("cgroup/sendmsg6")
int sock_sendmsg6(struct bpf_sock_addr *ctx)
{
	sock_ask6(ctx, 0);
	return SOCK_PROCEED;
}

SEC("cgroup/recvmsg6")
int sock_recvmsg6(struct bpf_sock_addr *ctx)
{
	sock_show6(ctx, sock_is_connected(ctx));
	return SOCK_PROCEED;
}

SEC("cgroup/getpeername6")
int sock_peername6(struct bpf_sock_addr *ctx)
{
	sock_show6(ctx, 1);
	return SOCK_PROCEED;
}

/* A connected socket that is closed makes room at once; what others leave behind
 * is pushed out some time. */
SEC("cgroup/sock_release")
int sock_closed4(struct bpf_sock *sk)
{
	struct sock_key key = {.proto = sk->protocol, .port = sk->dst_port};
	/* Read in any case: chosen between, the compiler would compute where from. */
	__be32 mapped = READ_ONCE(sk->dst_ip4);

	key.addr.w[0] = READ_ONCE(sk->dst_ip6[0]);
	key.addr.w[1] = READ_ONCE(sk->dst_ip6[1]);
	key.addr.w[2] = READ_ONCE(sk->dst_ip6[2]);
	key.addr.w[3] = READ_ONCE(sk->dst_ip6[3]);
	if (READ_ONCE(sk->family) != AF_INET6)
		key.addr = addr4(mapped);
	if (!key.port)
		return SOCK_PROCEED;
	key.cookie = bpf_get_socket_cookie(sk);
	if (bpf_map_delete_elem(&sock_links, &key.cookie))
		bpf_map_delete_elem(&sock_peers, &key);
	return SOCK_PROCEED;
}
