// SPDX-License-Identifier: Apache-2.0

package printer

import (
	"strings"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

func TestListFormats(t *testing.T) {
	rows := []*hawserv1.Map{{Name: "ipcache", MaxEntries: 1024, Entries: 1 << 40}}
	cols := Columns[*hawserv1.Map]{
		{"NAME", func(m *hawserv1.Map) string { return m.GetName() }},
		{"PIN", func(m *hawserv1.Map) string { return m.GetPin() }},
	}
	for format, want := range map[Format][]string{
		Table: {"NAME     PIN", "ipcache  –"},
		JSON:  {`"maxEntries": 1024`, `"entries": 1099511627776`, `"pin": ""`},
		YAML:  {"- entries: 1099511627776", `pin: ""`},
	} {
		var b strings.Builder
		if err := List(&b, format, rows, cols, "no maps"); err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(b.String(), w) {
				t.Errorf("%s lacks %q:\n%s", format, w, b.String())
			}
		}
	}
	var b strings.Builder
	if err := List(&b, Table, nil, cols, "no maps"); err != nil || b.String() != "no maps\n" {
		t.Errorf("empty table printed %q, %v", b.String(), err)
	}
	b.Reset()
	if err := List(&b, JSON, nil, cols, "no maps"); err != nil || strings.TrimSpace(b.String()) != "[]" {
		t.Errorf("empty JSON list printed %q, %v", b.String(), err)
	}
}

func TestTimesAreRFC3339(t *testing.T) {
	var b strings.Builder
	e := &hawserv1.Endpoint{CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano()}
	if err := One(&b, JSON, e, nil); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), `"createdAt": "2026-01-02T03:04:05Z"`) {
		t.Error(b.String())
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1204: "1,204", 1234567: "1,234,567", -100: "-100", -1000: "-1,000"} {
		if got := Count(n); got != want {
			t.Errorf("Count(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestLabelsAreUnambiguous(t *testing.T) {
	ls := []string{"cni:app=web", "cni:flag", "cni:empty=", "cni:list=a,cni:b=c", "cni:sum=a=b", `cni:said="x"`, "cni:odd,key=v"}
	want := `cni:app=web,cni:flag,cni:empty=,cni:list="a,cni:b=c",cni:sum="a=b",cni:said="\"x\"","cni:odd,key=v"`
	if got := Labels(ls); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}
