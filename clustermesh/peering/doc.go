// SPDX-License-Identifier: Apache-2.0

// Package peering is how two clusters come to trust each other and how far: join
// tokens, the prepare and confirm handshake, preflight, grants, trust bundles and
// leaving.
//
// Start with Service (invite and the serving side of a join), then Join (the
// joining side), then Guard (what a peer may publish here) and Trust (whose
// certificates are believed). Store is where all of it is kept, below
// private/<c>/.
//
// Out of scope: the stream between confirmed peers and the port it is served on
// (clustermesh/federation), and the making of certificates (internal/pki).
package peering
