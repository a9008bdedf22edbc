// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/internal/pki"
)

func TestOwnCertificatesRenewThemselves(t *testing.T) {
	start := time.Now()
	cfg := Config{Cluster: "east", DataDir: t.TempDir(), ListenFederation: netip.MustParseAddrPort("127.0.0.1:4243")}
	c, err := newCredentials(&cfg, start)
	if err != nil {
		t.Fatal(err)
	}
	shown := func() []byte {
		t.Helper()
		cert, err := c.Certificate()
		if err != nil {
			t.Fatal(err)
		}
		onDisk, err := c.server.Certificate()
		if err != nil || !bytes.Equal(onDisk.Certificate[0], cert.Certificate[0]) {
			t.Errorf("etcd's file has another certificate than federation (%v)", err)
		}
		return cert.Certificate[0]
	}
	first, ends := shown(), c.expires()
	log := slog.New(slog.DiscardHandler)
	due := start.Add(pki.DefaultLifetime * 2 / 3)
	if err := c.renewIfDue(due.Add(-24*time.Hour), log); err != nil || !bytes.Equal(shown(), first) {
		t.Errorf("a day too early: %v, renewed %v", err, !bytes.Equal(shown(), first))
	}
	if err := c.renewIfDue(due.Add(24*time.Hour), log); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(shown(), first) || !c.expires().After(ends) {
		t.Errorf("when due: the same certificate still, until %s", c.expires())
	}
	second := shown()
	if err := c.renewIfDue(due.Add(25*time.Hour), log); err != nil || !bytes.Equal(shown(), second) {
		t.Errorf("right after: %v, renewed again", err)
	}
}
