// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// Who refuses this node is told apart from who does not answer.
func TestWhyTheKeyspaceIsNotConnected(t *testing.T) {
	const runs = "check that hawser-apiserver runs"
	denied := fmt.Errorf("list state/: %w", kvstore.ErrDenied)
	for name, c := range map[string]struct {
		err        error
		enrolled   bool
		says, cure string
	}{
		"forgotten":          {denied, true, "was forgotten", "hawser node invite n1"},
		"a user is missing":  {denied, false, "does not admit this node's certificate", "role of agents"},
		"another CA there":   {fmt.Errorf("tls: failed to verify certificate: %w", x509.UnknownAuthorityError{}), true, "do not believe each other's CA", "hawser node invite n1"},
		"another CA here":    {errors.New("remote error: tls: unknown certificate authority"), true, "do not believe each other's CA", "hawser node invite n1"},
		"refused":            {errors.New("remote error: tls: bad certificate"), true, "refuses this node's certificate", "hawser node invite n1"},
		"the clock is wrong": {fmt.Errorf("tls: failed to verify certificate: %w", x509.CertificateInvalidError{Reason: x509.Expired}), true, "by this node's clock", "set the clock of this node right"},
		"nobody answers":     {errors.New("no answer from 192.0.2.1:2379 (connection refused)"), true, "not connected: no answer", runs},
	} {
		t.Run(name, func(t *testing.T) {
			p := disconnected(&hawserv1.KeyspaceStatus{Endpoint: "192.0.2.1:2379", LastError: c.err.Error()}, "n1", c.enrolled)
			if !strings.Contains(p.GetProblem(), c.says) || !strings.Contains(p.GetProblem(), c.err.Error()) || !strings.Contains(p.GetFix(), c.cure) {
				t.Errorf("problem %v", p)
			}
			if (p.GetFix() == runs) != (c.cure == runs) || strings.Contains(p.GetFix(), "node forget") || !strings.HasPrefix(p.GetObject(), "keyspace ") {
				t.Errorf("problem %v", p)
			}
		})
	}
}
