// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"strings"
	"testing"
)

func TestParseSplits(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []string
	}{
		{"one", "a: 1\n", []string{"a: 1\n"}},
		{"many", "---\na: 1\n---\n# only a comment\n---  # note\nb: 2\n...\nc: 3\n", []string{"a: 1\n", "# note\nb: 2\n", "c: 3\n"}},
		{"value on the marker's line", "--- {a: 1}\n", []string{"{a: 1}\n"}},
		{"not a marker", "a: |\n  ---\n  x\nb: '---'\n", []string{"a: |\n  ---\n  x\nb: '---'\n"}},
		{"json", `{"a":1} ` + "\n" + `[2]`, []string{`{"a":1}`, `[2]`}},
		{"json with tabs", "{\n\t\"a\":\t1\n}", []string{"{\n\t\"a\":\t1\n}"}},
		{"flow yaml", "{a: 1}\n---\n[b]\n", []string{"{a: 1}\n", "[b]\n"}},
		{"crlf", "a: 1\r\n---\r\nb: 2\r\n", []string{"a: 1\r\n", "b: 2\r\n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			docs, err := Parse([]byte(c.in))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for i, d := range docs {
				got = append(got, d.Text)
				if d.Index != i+1 {
					t.Errorf("document %d has index %d", i+1, d.Index)
				}
			}
			if strings.Join(got, "|") != strings.Join(c.want, "|") {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"nothing":            {"\n# comment\n---\n", "no document"},
		"too big":            {strings.Repeat("#", MaxSize+1), "more than"},
		"duplicate in YAML":  {"a: 1\nb: 2\na: 3\n", `key "a" already set`},
		"duplicate in JSON":  {`{"a":{"b":1,"b":2}}`, "a.b: given twice"},
		"duplicate in flow":  {`{a: 1, a: 2}`, `key "a" already set`},
		"deep JSON":          {strings.Repeat("[", 100) + strings.Repeat("]", 100), "nested deeper"},
		"deep YAML":          {"a: " + strings.Repeat("[", 100) + strings.Repeat("]", 100), "nested deeper"},
		"cut JSON":           {`{"a": [1, `, "document 1"},
		"second is bad":      {"a: 1\n---\nb: [\n", "document 2"},
		"garbage after JSON": {`{"a":1} }`, "document 1"},
		"two flow values":    {"{a: 1}\n{b: 2}\n", "parse YAML"},
		"list after a map":   {"{a: 1}\n- b\n", "parse YAML"},
		"tab in YAML":        {"a:\n\tb: 1\n", "parse YAML"},
	} {
		t.Run(name, func(t *testing.T) {
			docs, err := Parse([]byte(c.in))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %d documents and error %v, want one with %q", len(docs), err, c.want)
			}
		})
	}
}

func TestNodeNamesWhatIsWrong(t *testing.T) {
	docs, err := Parse([]byte("ok: x\nlater: 1\nodd: 2\nnull1:\nlist: [1, null, -1, 70000, '7']\nflag: yes please\nname: n\n"))
	if err != nil {
		t.Fatal(err)
	}
	root := docs[0].Root()
	root.Only([]string{"ok", "null1", "list", "flag", "name"}, Later{"later": "write sooner"})
	if _, ok := root.Field("null1"); ok {
		t.Error("a null field counts as given")
	}
	list, _ := root.Field("list")
	for _, item := range list.List() {
		item.Uint(65535)
	}
	flag, _ := root.Field("flag")
	flag.Bool()
	flag.List()
	flag.Entries()
	flag.Only(nil, nil)
	list.Text()
	root.FieldText("name")
	var got []string
	for _, p := range root.Problems() {
		got = append(got, p.Error())
	}
	want := `later: not supported yet: write sooner
odd: unknown field
null1: is null: give it a value, or leave it out
list[1]: is null: give it a value, or leave it out
list[2]: must be a whole number from 0 to 65535
list[3]: must be a whole number from 0 to 65535
list[4]: must be a whole number from 0 to 65535
flag: must be true or false
flag: must be a list
flag: must be a mapping
flag: must be a mapping
list: must be a string
name: must be a string: unquoted y, yes, on, n, no, off, true and false are none in YAML; quote it`
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
}
