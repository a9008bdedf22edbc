// SPDX-License-Identifier: Apache-2.0

package enrol

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"
)

// FuzzParseRequest is what anybody who reaches the API port can send as a
// certificate request: what is taken is signed by its own key.
func FuzzParseRequest(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, _, err := newRequest(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add(der[:len(der)-3])
	f.Add([]byte{0x30, 0x80})
	f.Add(make([]byte, maxRequest+1))
	f.Fuzz(func(t *testing.T, der []byte) {
		csr, err := parseRequest(der)
		if err != nil {
			return
		}
		if len(der) > maxRequest || csr.CheckSignature() != nil {
			t.Fatalf("took a request of %d bytes: %v", len(der), csr.CheckSignature())
		}
	})
}
