// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"strings"
	"testing"
)

func TestTunnelPortInUseIsNamed(t *testing.T) {
	first, err := holdTunnelPort(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	taken := netip.MustParseAddrPort(first.LocalAddr().String())
	_, err = holdTunnelPort(t.Context(), taken)
	if err == nil || !strings.Contains(err.Error(), taken.String()+" is in use") {
		t.Errorf("got %v", err)
	}
}
