// SPDX-License-Identifier: Apache-2.0

package kvstore

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestKeysSurviveTheRoundTrip(t *testing.T) {
	for _, k := range []Key{
		NewKey(State, "east", KindCluster),
		NewKey(State, "east", KindNode, "node-1.example"),
		NewKey(State, "east", KindIdentity, "65537"),
		NewKey(State, "east", KindIdentityLabels, strings.Repeat("ab", 32)),
		NewKey(State, "east", KindIP, PrefixName(netip.MustParsePrefix("fd00::1/128"))),
		NewKey(State, "e-1", KindSlice, "ns", "svc", "a/b%2F c"),
		NewKey(Local, "east", KindSynced, "west", string(KindIdentity)),
		NewKey(Private, "east", KindElection, "import", "west"),
		NewKey(Private, "east", KindIncarnation),
		NewKey(State, "east", Kind("future"), "x", "y"),
	} {
		got, err := ParseKey(k.String())
		if err != nil {
			t.Errorf("%s: %v", k, err)
			continue
		}
		if got.String() != k.String() || got.Kind != k.Kind || !slices.Equal(got.Names, k.Names) {
			t.Errorf("%s parsed as %+v", k, got)
		}
		if k.Kind.Arity() > 0 && !strings.HasPrefix(k.String(), KindPrefix(k.Subtree, k.Cluster, k.Kind)) {
			t.Errorf("%s is not below its kind's directory", k)
		}
	}
}

func TestParseKeyRefuses(t *testing.T) {
	for _, s := range []string{
		"", "hawser/v1/", "other/state/east/cluster", "hawser/v1/state/east", "hawser/v1/state/east/",
		"hawser/v1/shared/east/cluster",
		"hawser/v1/state/East/cluster", "hawser/v1/state/-e/cluster", "hawser/v1/state//cluster",
		"hawser/v1/state/" + strings.Repeat("a", 33) + "/cluster",
		"hawser/v1/state/east/nodes", "hawser/v1/state/east/nodes/", "hawser/v1/state/east/nodes/a/b",
		"hawser/v1/state/east/nodes/%61", "hawser/v1/state/east/nodes/%zz", "hawser/v1/state/east/nodes/a%2fb",
		"hawser/v1/state/east/identities", "hawser/v1/state/east/identities/",
		"hawser/v1/state/east/cluster/x", "hawser/v1/private/east/elections",
	} {
		k, err := ParseKey(s)
		var b *BadRecord
		if !errors.As(err, &b) || b.Reason != ReasonKey {
			t.Errorf("ParseKey(%q) = %+v, %v; want a bad key", s, k, err)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add("hawser/v1/state/east/nodes/n1")
	f.Add("hawser/v1/local/east/synced/west/identities%2Fid")
	f.Add("hawser/v1/state/east/ips/10.0.0.1%2F32")
	f.Add("hawser/v1/private/e/elections/import/w")
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseKey(s)
		if err == nil && k.String() != s {
			t.Errorf("%q parsed and rendered is %q", s, k)
		}
	})
}
