// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"strings"
	"testing"
)

func TestCNIPorts(t *testing.T) {
	got, err := cniPorts([]string{"http=8080/tcp", "dns=53/udp", "any=1"})
	if err != nil || len(got) != 3 || got[0] != (cniPort{"http", 8080, "tcp"}) || got[1] != (cniPort{"dns", 53, "udp"}) || got[2] != (cniPort{"any", 1, ""}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{"", "http", "http=", "=80", "http=0", "http=65536", "http=x/tcp"} {
		if _, err := cniPorts([]string{text}); err == nil || !strings.Contains(err.Error(), "want NAME=PORT/PROTOCOL") {
			t.Errorf("%q: error %v", text, err)
		}
	}
}
