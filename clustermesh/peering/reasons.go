// SPDX-License-Identifier: Apache-2.0

package peering

import "github.com/hawser-mesh/hawser/kvstore"

// Reasons for which a record that is in order is refused nevertheless, the words
// that counters carry beside those of kvstore.
const (
	ReasonForeign   = "foreign"   // another cluster's
	ReasonNamespace = "namespace" // not one of those that are granted
	ReasonLimit     = "limit"     // there are more than granted
)

// Reasons are all those for which a peer's record is refused.
func Reasons() []string {
	return append(kvstore.Reasons(), ReasonForeign, ReasonNamespace, ReasonLimit)
}
