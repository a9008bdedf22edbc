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
};

static __always_inline int is_mapped(const struct addr *a)
{
	return a->w[2] == V4_MAPPED && !a->w[1] && !a->w[0];
}

/* Chooses a backend for a socket that asks for the address and port in *peer, and
 * remembers what it asked for. A socket that is not connected stays with one for as
 * long as the service's backends are the same. */
static __always_inline struct backend *sock_to_backend(struct bpf_sock_addr *ctx,
                                                       struct sock_peer *peer)
{
	struct frontend_key asked = {
	    .addr = peer->addr, .port = peer->port, .proto = ctx->protocol};
	struct sock_key key = {.proto = ctx->protocol};
	struct frontend *fe;
	struct backend *b;
	__u32 number, pick;

	if (asked.proto != IPPROTO_TCP && asked.proto != IPPROTO_UDP)
		return NULL;
	fe = bpf_map_lookup_elem(&services, &asked);
	if (!fe || fe->affinity)
		return NULL;
	key.cookie = bpf_get_socket_cookie(ctx);
	pick = ((__u32)key.cookie ^ asked.addr.w[1] ^ asked.addr.w[3] ^ asked.port) * 0x9E3779B1;
	if (peer->flags & SOCK_CONNECTED)
		pick = bpf_get_prandom_u32();
	b = pick_backend(fe, pick, &number);
	if (!b || is_mapped(&b->addr) != is_mapped(&asked.addr))
		return NULL;
	key.addr = b->addr;
	key.port = b->port;
	peer->frontend = fe->number;
	if (peer->flags & SOCK_CONNECTED || !bpf_map_lookup_elem(&sock_peers, &key))
		if (bpf_map_update_elem(&sock_peers, &key, peer, BPF_ANY))
			return NULL;
	return b;
}

static __always_inline void sock_ask4(struct bpf_sock_addr *ctx, __u16 flags)
{
	struct sock_peer peer = {
	    .addr = addr4(ctx->user_ip4), .port = (__be16)ctx->user_port, .flags = flags};
	struct backend *b = sock_to_backend(ctx, &peer);

	if (!b)
		return;
	ctx->user_ip4 = b->addr.w[3];
	ctx->user_port = b->port;
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

static __always_inline void sock_set6(struct bpf_sock_addr *ctx, const struct addr *a, __be16 port)
{
	ctx->user_ip6[0] = a->w[0];
	ctx->user_ip6[1] = a->w[1];
	ctx->user_ip6[2] = a->w[2];
	ctx->user_ip6[3] = a->w[3];
	ctx->user_port = port;
}

static __always_inline void sock_ask6(struct bpf_sock_addr *ctx, __u16 flags)
{
	struct sock_peer peer = {.port = (__be16)ctx->user_port, .flags = flags};
	struct backend *b;

	peer.addr = sock_addr6(ctx);
	b = sock_to_backend(ctx, &peer);
	if (b)
		sock_set6(ctx, &b->addr, b->port);
}

/* The service where the socket's peer is its backend. */
static __always_inline struct sock_peer *sock_service(struct bpf_sock_addr *ctx, struct addr peer)
{
	struct sock_key key = {
	    .addr = peer, .proto = ctx->protocol, .port = (__be16)ctx->user_port};

	key.cookie = bpf_get_socket_cookie(ctx);
	return bpf_map_lookup_elem(&sock_peers, &key);
}

/* Shows the service. */
static __always_inline void sock_show4(struct bpf_sock_addr *ctx)
{
	struct sock_peer *peer = sock_service(ctx, addr4(ctx->user_ip4));

	if (!peer)
		return;
	ctx->user_ip4 = peer->addr.w[3];
	ctx->user_port = peer->port;
}

static __always_inline void sock_show6(struct bpf_sock_addr *ctx)
{
	struct sock_peer *peer = sock_service(ctx, sock_addr6(ctx));

	if (peer)
		sock_set6(ctx, &peer->addr, peer->port);
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
	sock_show4(ctx);
	return SOCK_PROCEED;
}

SEC("cgroup/getpeername4")
int sock_peername4(struct bpf_sock_addr *ctx)
{
	sock_show4(ctx);
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
	sock_show6(ctx);
	return SOCK_PROCEED;
}

SEC("cgroup/getpeername6")
int sock_peername6(struct bpf_sock_addr *ctx)
{
	sock_show6(ctx);
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
	bpf_map_delete_elem(&sock_peers, &key);
	return SOCK_PROCEED;
}
