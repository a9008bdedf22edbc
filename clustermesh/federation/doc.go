// SPDX-License-Identifier: Apache-2.0

// Package federation carries state/<cluster>/ between the API servers of
// confirmed peers: one gRPC stream for each peering, dialled by either side, both
// directions on it.
//
// Start with Manager (one runner for each confirmed peer, the port they meet
// on), then runner (which stream stays, what the PeerView says), session (the
// frames of one stream), exporter (our changes out: resume or snapshot, batches,
// window) and importer (theirs in: judged, fenced, applied, acknowledged), whose
// sentry notices who else writes to the copy.
//
// Out of scope: how peers come to trust each other and what they may publish
// (clustermesh/peering), and what agents make of the mirror.
package federation
