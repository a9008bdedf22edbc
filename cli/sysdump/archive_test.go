// SPDX-License-Identifier: Apache-2.0

package sysdump

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/clustermesh/invitation"
)

func TestSecretsStayOut(t *testing.T) {
	tok, err := invitation.New("east", "n1", []string{"h:1"}, [32]byte{1}, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	const key = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----"
	text := "level=INFO msg=join token=" + tok.String() + " node=n1\n" + key + "\n" +
		`{"password": "hunter2", "name": "echo"} api_key=abc123 secret: "s3cr3t"` + "\nafter\n"
	var buf bytes.Buffer
	a := newArchive(&buf, "root")
	if err := a.add("logs/x.log", []byte(text), time.Now()); err != nil {
		t.Fatal(err)
	}
	a.miss("node", errors.New("down"))
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	gz, err := gzip.NewReader(&buf)
	if err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(gz)
	h, err := tr.Next()
	if err != nil || h.Name != "root/logs/x.log" {
		t.Fatalf("%+v, %v", h, err)
	}
	raw, err := io.ReadAll(tr)
	if err != nil {
		t.Fatal(err)
	}
	got := string(raw)
	for _, secret := range []string{tok.String(), "MIGHAgEAMBMGByqGSM49", "hunter2", "abc123", "s3cr3t"} {
		if strings.Contains(got, secret) {
			t.Errorf("%q is in the archive:\n%s", secret, got)
		}
	}
	for _, kept := range []string{"level=INFO msg=join", "node=n1", `"name": "echo"`, "after"} {
		if !strings.Contains(got, kept) {
			t.Errorf("%q is not in the archive:\n%s", kept, got)
		}
	}
	if _, err := tr.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("more in it: %v", err)
	}
}
