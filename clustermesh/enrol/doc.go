// SPDX-License-Identifier: Apache-2.0

// Package enrol is how a host becomes a node of a cluster: the API server's side
// (Service: invite, enrol, renew, forget) and the node's side (Join, Renewer,
// and what a node keeps of it: State).
//
// A token names the node that it admits; the host makes its key, proves the
// token's secret over the TLS connection and gets a certificate for that key.
// Later certificates come over mutual TLS, for the same key, as long as the
// cluster remembers the enrolment. The name in a certificate is the token's or
// the record's, never the caller's.
//
// Out of scope: the port that it is served on (clustermesh/apiserver), the text
// and proof of tokens (clustermesh/invitation).
package enrol
