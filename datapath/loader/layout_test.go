// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"slices"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/datapath/objects"
)

func fieldsFrom(t *testing.T, s string) []field {
	t.Helper()
	l, err := parseLayout("@0+4|" + s)
	if err != nil {
		t.Fatal(err)
	}
	return l.value
}

func TestCommonFields(t *testing.T) {
	for _, c := range []struct{ name, was, is, want, wrong string }{
		{"the same", "a@0+4 b@4+4", "a@0+4 b@4+4", "a@0+4 b@4+4", ""},
		{"one more at the end", "a@0+4", "a@0+4 b@4+4", "a@0+4", ""},
		{"one more in the padding", "a@0+4 c@8+8", "a@0+4 b@4+2 c@8+8", "a@0+4 c@8+8", ""},
		{"one less", "a@0+4 b@4+4", "a@0+4", "a@0+4", ""},
		{"renamed", "a@0+4 b@4+4", "a@0+4 c@4+4", "", `"c" is where "b" was`},
		{"wider", "a@0+4 b@4+4", "a@0+8", "", `"a" is where "a" was`},
		{"moved on another", "a@0+4 b@4+4", "b@0+4 a@4+4", "", `"b" is where "a" was`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := common(fieldsFrom(t, c.was), fieldsFrom(t, c.is))
			if c.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), c.wrong) {
					t.Errorf("%v, want %s", err, c.wrong)
				}
				return
			}
			if err != nil || !slices.Equal(got, fieldsFrom(t, c.want)) {
				t.Errorf("%v, %v; want %s", got, err, c.want)
			}
		})
	}
}

// TestLayoutsCanBeNoted writes and reads the layout of each map that there is.
func TestLayoutsCanBeNoted(t *testing.T) {
	spec, err := objects.LoadHawser()
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range pinnedMaps(spec) {
		if len(m.Name) == 0 || m.Type.String() == "RingBuf" {
			continue
		}
		l, err := layoutOf(m)
		if err != nil {
			t.Error(err)
			continue
		}
		again, err := parseLayout(l.String())
		if err != nil || !slices.Equal(again.key, l.key) || !slices.Equal(again.value, l.value) {
			t.Errorf("%s: %s read as %s, %v", name, l, again, err)
		}
		if n := len(l.String()); n >= len(layoutText{}) {
			t.Errorf("%s: its layout takes %d bytes", name, n)
		}
	}
	ct, err := layoutOf(spec.Maps["ct4"])
	if err != nil || !slices.Contains(ct.value, field{"nat_addr.w", 64, 16}) {
		t.Errorf("the layout of ct4 is %s, %v", ct, err)
	}
}
