/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Why a packet was dropped. Functions return 0 or more for "go on" and a
 * negative reason for a drop; finish() in event.h is the one exit that counts
 * and reports. The comment behind each reason is its name, which Go shows; a
 * test compares. Numbers are stable: they are indexes of the metrics map. An
 * AUDIT_ reason is of a packet that passed. */
#pragma once

enum drop_reason {
	DROP_NONE = 0,                 /* forwarded */
	DROP_POLICY_DENIED = 1,        /* policy denied */
	DROP_SPOOFED_SOURCE = 2,       /* spoofed source */
	DROP_SPOOFED_IDENTITY = 3,     /* spoofed identity */
	DROP_UNKNOWN_SENDER = 4,       /* unknown sender */
	DROP_IDENTITY_UNKNOWN = 5,     /* identity unknown yet */
	DROP_CONNTRACK_FULL = 6,       /* conntrack full */
	DROP_NO_BACKEND = 7,           /* no backend */
	DROP_UNSUPPORTED_PROTOCOL = 8, /* unsupported protocol */
	DROP_PACKET_TOO_BIG = 9,       /* packet too big */
	DROP_NO_TUNNEL_ENDPOINT = 10,  /* no tunnel endpoint */
	DROP_MALFORMED = 11,           /* malformed packet */
	DROP_TINY_FRAGMENT = 12,       /* tiny fragment */
	DROP_UNKNOWN_DESTINATION = 13, /* unknown destination */
	DROP_UNKNOWN_ENDPOINT = 14,    /* unknown endpoint */
	DROP_UNRELATED_ICMP = 15,      /* unrelated icmp error */
	DROP_IP_OPTIONS = 16,          /* ip options */
	DROP_MULTICAST = 17,           /* multicast */
	DROP_UNKNOWN_RULE_SET = 18,    /* unknown rule set */
	DROP_REWRITE_FAILED = 19,      /* rewrite failed */
	DROP_EARLY_FRAGMENT = 20,      /* fragment before its first */
	DROP_OVERLAP = 21,             /* overlapping fragment */
	DROP_NO_SNAT_PORT = 22,        /* no masquerade port */
	DROP_SOURCE_ROUTE = 23,        /* source route */
	DROP_EXTENSION_HEADERS = 24,   /* too many extension headers */
	DROP_ROUTER_SOLICITATION = 25, /* router solicitation */
	DROP_TUPLE_IN_USE = 26,        /* translated tuple in use */
	DROP_LINK_TALK = 27,           /* link talk */
	DROP_STRAY_TUNNEL = 28,        /* stray tunnel packet */
	DROP_FORGED_TUNNEL = 29,       /* forged tunnel packet */
	DROP_UNASKED_REPLY = 30,       /* unasked echo reply */
	AUDIT_POLICY_DENIED = 31,      /* policy denied, audited only */
	DROP_REASONS = 32,             /* room in the metrics map */
};

/* DROP records where the decision fell and returns the reason. */
#define DROP(p, reason)                                                                            \
	({                                                                                         \
		(p)->line = __LINE__;                                                              \
		-(int)(reason);                                                                    \
	})
