// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// maxUpstreams is how many resolvers are asked for one name.
const maxUpstreams = 3

// HostUpstreams are the resolvers that a resolv.conf names, without those at an
// address of self: a host that was told to ask this server for the mesh's names
// must not be asked back.
func HostUpstreams(path string, self netip.AddrPort) ([]netip.AddrPort, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the host's resolvers: %w", err)
	}
	var out []netip.AddrPort
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(f[1])
		if err != nil || a.IsUnspecified() {
			continue
		}
		u := netip.AddrPortFrom(a, Port)
		if u == self || slices.Contains(out, u) {
			continue
		}
		if out = append(out, u); len(out) == maxUpstreams {
			break
		}
	}
	return out, nil
}
