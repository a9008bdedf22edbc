// SPDX-License-Identifier: Apache-2.0

// Package netdev makes a node's network devices, addresses, routes and sysctls
// through netlink: the pair of each pod (EnsurePod), the pair that carries the
// traffic between the node itself and pods (EnsureHostDevice), the routes through
// it (EnsureRoute), and the tunnel's device where the kernel makes the tunnel's
// headers (EnsureTunnelDevice).
//
// Every Ensure function may be repeated: it changes only what differs and
// returns what is there, so a restarted agent adopts its devices. All functions
// work in the network namespace of the calling thread and touch no other,
// except that EnsurePod enters the pod's on a thread of its own.
//
// Out of scope: programs attached to the devices (datapath/loader), what tunnels
// add to packets (tunnel) and which addresses there are (ipam).
package netdev
