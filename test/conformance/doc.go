// SPDX-License-Identifier: Apache-2.0

// Package conformance compares Hawser with other people's readings of the
// standards it follows. It is a module of its own: what it needs for that is no
// dependency of the product. `make test-conformance` runs it.
package conformance
