// SPDX-License-Identifier: Apache-2.0

// Package invitation is the single-use token by which a cluster joins a mesh or
// a node joins a cluster: its text, the proof of its secret, and the inviter's
// record of it.
//
// Start with Token, then Proof, then Ledger. What a joiner may do with a proved
// token is the business of clustermesh/peering (clusters) and clustermesh/enrol
// (nodes).
package invitation
