// SPDX-License-Identifier: Apache-2.0

package invitation

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
)

// exporterLabel keeps the proof's keying material apart from any other use of
// the TLS exporter (RFC 8446, section 7.5).
const exporterLabel = "EXPORTER-hawser-join-v1"

// Proof shows knowledge of a token's secret on exactly this TLS connection, for
// exactly this step and between exactly these two parties (the inviter's CA, and
// the joiner's CA or key, each by its hash), without revealing it:
// HMAC-SHA-256(secret, exporter value || inviter || joiner).
func Proof(secret []byte, cs tls.ConnectionState, step string, inviter, joiner [32]byte) ([]byte, error) {
	value, err := cs.ExportKeyingMaterial(exporterLabel, []byte(step), 32)
	if err != nil {
		return nil, fmt.Errorf("derive join proof: %w", err)
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write(value)
	mac.Write(inviter[:])
	mac.Write(joiner[:])
	return mac.Sum(nil), nil
}
