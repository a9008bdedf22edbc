// SPDX-License-Identifier: Apache-2.0

// Package doccheck holds what the documentation says of the code to the code. It
// has tests only. Out of scope: the generated reference, which is compared by
// make verify.
package doccheck
