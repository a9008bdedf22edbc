// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/internal/pki"
)

// BenchmarkUnchangedTrust is what a change of one peer's record costs for the trust
// in all others, in the largest mesh.
func BenchmarkUnchangedTrust(b *testing.B) {
	const peers = 1022
	ca := func(name string) *x509.Certificate {
		c, err := pki.NewCA(name, time.Now())
		if err != nil {
			b.Fatal(err)
		}
		return c.Certificate()
	}
	trust, err := NewTrust("own", fixedCreds{ca: []*x509.Certificate{ca("own")}}, time.Now)
	if err != nil {
		b.Fatal(err)
	}
	bundles := map[string][][]byte{}
	set := func() {
		for name, ders := range bundles {
			if err := trust.SetPeer(name, ders); err != nil {
				b.Fatal(err)
			}
		}
	}
	for i := range peers {
		name := fmt.Sprintf("p%04d", i)
		bundles[name] = [][]byte{ca(name).Raw}
	}
	set()
	for b.Loop() {
		set()
	}
}
