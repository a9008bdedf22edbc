// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"io"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/cli/session"
)

// An empty list is a mistake of who wrote it, as in a script whose variable is
// empty; it is no change that succeeds.
func TestGrantOfNothing(t *testing.T) {
	for _, flag := range []string{"add-pod-cidr", "remove-pod-cidr", "add-node-cidr", "remove-node-cidr", "add-service-cidr", "remove-service-cidr", "namespaces"} {
		cmd := newGrant(&session.Session{})
		cmd.SetArgs([]string{"west", "--" + flag, "", "--max-services", "5"})
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "--"+flag+" names nothing") {
			t.Errorf("--%s '': %v", flag, err)
		}
	}
}
