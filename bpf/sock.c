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

/* What a datagram socket that connects to the same service again is connected to
 * already: it stays there for as long as the service's backends are the same, as
 * its packets would. A stream's first try may have failed, so it gets another. */
static __always_inline struct sock_link *sock_again(const struct tuple4 *t, __u64 cookie,
                                                    __u32 frontend, __u32 epoch)
{
	struct sock_link *known;

	if (t->proto != IPPROTO_UDP)
		return NULL;
	known = bpf_map_lookup_elem(&sock_links, &cookie);
	if (known && known->frontend == frontend && known->epoch == epoch &&
	    is_addr4(&known->service, t->daddr) && known->service_port == t->dport)
		return known;
	return NULL;
}

/* Connects the socket to a backend, and returns whether it did. */
static __always_inline int sock_connect(struct bpf_sock_addr *ctx, const struct tuple4 *t,
                                        const struct frontend *fe)
{
	struct sock_key key = {.proto = t->proto, .cookie = bpf_get_socket_cookie(ctx)};
	struct sock_peer peer = {.addr = addr4(t->daddr),
	                         .port = t->dport,
	                         .flags = SOCK_CONNECTED,
	                         .frontend = fe->number};
	__u32 epoch = service_epoch(fe->number), number;
	struct sock_link *known = sock_again(t, key.cookie, fe->number, epoch);
	struct backend *b;

	if (known) {
		ctx->user_ip4 = known->backend.w[3];
		ctx->user_port = known->backend_port;
		return 1;
	}
	b = slot_backend(fe, bpf_get_prandom_u32(), &number);
	if (!b)
		return 0;
	key.addr = b->addr;
	key.port = b->port;
	if (sock_connected(&key, &peer, epoch) &&
	    bpf_map_update_elem(&sock_peers, &key, &peer, BPF_ANY))
		return 0;
	ctx->user_ip4 = key.addr.w[3];
	ctx->user_port = key.port;
	return 1;
}

/* Sends a socket's datagram to a backend: the same for as long as the service's
 * backends are the same. */
static __always_inline void sock_send(struct bpf_sock_addr *ctx, const struct tuple4 *t,
                                      const struct frontend *fe)
{
	struct sock_key key = {.proto = t->proto, .cookie = bpf_get_socket_cookie(ctx)};
	struct sock_peer peer = {.addr = addr4(t->daddr), .port = t->dport, .frontend = fe->number};
	__u32 pick = ((__u32)key.cookie ^ t->daddr ^ t->dport) * 0x9E3779B1, number;
	struct backend *b = pick_backend(fe, pick, &number);

	if (!b)
		return;
	key.addr = b->addr;
	key.port = b->port;
	if (!bpf_map_lookup_elem(&sock_peers, &key) &&
	    bpf_map_update_elem(&sock_peers, &key, &peer, BPF_ANY))
		return;
	ctx->user_ip4 = key.addr.w[3];
	ctx->user_port = key.port;
}

static __always_inline struct tuple4 sock_tuple(const struct bpf_sock_addr *ctx)
{
	struct tuple4 t = {
	    .daddr = ctx->user_ip4, .dport = (__be16)ctx->user_port, .proto = ctx->protocol};

	return t;
}

/* The service that is balanced at the socket. */
static __always_inline struct frontend *sock_frontend(const struct tuple4 *t)
{
	struct frontend *fe = frontend4(t);

	return fe && !fe->affinity ? fe : NULL;
}

/* Shows the service where the socket's peer is its backend. */
static __always_inline void sock_to_service(struct bpf_sock_addr *ctx)
{
	struct sock_key key = {.proto = ctx->protocol, .port = (__be16)ctx->user_port};
	struct sock_link *link;
	struct sock_peer *peer;

	key.addr = addr4(ctx->user_ip4);
	key.cookie = bpf_get_socket_cookie(ctx);
	link = bpf_map_lookup_elem(&sock_links, &key.cookie);
	if (link && is_addr4(&link->backend, ctx->user_ip4) && link->backend_port == key.port) {
		ctx->user_ip4 = link->service.w[3];
		ctx->user_port = link->service_port;
		return;
	}
	peer = bpf_map_lookup_elem(&sock_peers, &key);
	if (!peer)
		return;
	ctx->user_ip4 = peer->addr.w[3];
	ctx->user_port = peer->port;
}

/* A datagram socket that is connected may connect again, to what is no service.
 * New ones are let off: the first cookie of a socket takes 100 ns. */
static __always_inline void sock_unlink(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = (struct bpf_sock *)(long)ctx->sk;
	__u64 cookie;

	if (sk->state != SOCK_ESTABLISHED)
		return;
	cookie = bpf_get_socket_cookie(ctx);
	if (bpf_map_lookup_elem(&sock_links, &cookie))
		bpf_map_delete_elem(&sock_links, &cookie);
}

SEC("cgroup/connect4")
int sock_connect4(struct bpf_sock_addr *ctx)
{
	struct tuple4 t = sock_tuple(ctx);
	struct frontend *fe = sock_frontend(&t);

	if (!(fe && sock_connect(ctx, &t, fe)) && t.proto == IPPROTO_UDP)
		sock_unlink(ctx);
	return SOCK_PROCEED;
}

SEC("cgroup/sendmsg4")
int sock_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct tuple4 t = sock_tuple(ctx);
	struct frontend *fe = sock_frontend(&t);

	if (fe)
		sock_send(ctx, &t, fe);
	return SOCK_PROCEED;
}

SEC("cgroup/recvmsg4")
int sock_recvmsg4(struct bpf_sock_addr *ctx)
{
	sock_to_service(ctx);
	return SOCK_PROCEED;
}

SEC("cgroup/getpeername4")
int sock_peername4(struct bpf_sock_addr *ctx)
{
	sock_to_service(ctx);
	return SOCK_PROCEED;
}

/* A connected socket that is closed makes room at once; what others leave behind
 * is pushed out some time. */
SEC("cgroup/sock_release")
int sock_closed4(struct bpf_sock *sk)
{
	struct sock_key key = {.proto = sk->protocol, .port = sk->dst_port};

	if (!sk->dst_ip4)
		return SOCK_PROCEED;
	key.addr = addr4(sk->dst_ip4);
	key.cookie = bpf_get_socket_cookie(sk);
	if (bpf_map_delete_elem(&sock_links, &key.cookie))
		bpf_map_delete_elem(&sock_peers, &key);
	return SOCK_PROCEED;
}
