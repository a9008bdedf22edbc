// SPDX-License-Identifier: Apache-2.0

package plain_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/hawser-mesh/hawser/internal/plain"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"as it is, – é":         "as it is, – é",
		"a\x1b[2Jb\nc\td\x7f":   "a [2Jb c d ",
		"C1 \u009b2J":           "C1  2J",
		"turned \u202eround":    "turned  round",
		"half a rune \xc3":      "half a rune ?",
		strings.Repeat("é", 20): strings.Repeat("é", 15), // 31 bytes would end inside of one
	} {
		if got := plain.Text(in, 31); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
	if got := plain.Cell("a\n\tb\x1b\x80"); got != "a\n\tb ?" {
		t.Errorf("a cell is %q", got)
	}
}

func FuzzText(f *testing.F) {
	f.Add("é\x1b\xff", 2)
	f.Fuzz(func(t *testing.T, s string, most int) {
		if most < 0 {
			most = 0
		}
		if got := plain.Text(s, most); !utf8.ValidString(got) || len(got) > most || strings.ContainsAny(got, "\x1b\n\r\x7f") {
			t.Errorf("%q is shown as %q", s, got)
		}
	})
}
