// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/kvstore"
)

// FuzzParse is what a file given to `hawser kvstore import` can hold: what is
// taken from it is valid, this cluster's, and each key once.
func FuzzParse(f *testing.F) {
	const head = `{"hawserExport":1,"cluster":"east","revision":7}` + "\n"
	f.Add([]byte(head + `{"key":"hawser/v1/state/east/nodes/n1","record":{"name":"n1","cluster":"east"}}`))
	f.Add([]byte(head + `{"key":"hawser/v1/local/east/policies/_/p","record":{"kind":"RuleArray","namespace":"_","name":"p","source":"[]"}}`))
	f.Add([]byte(head + `{"key":"hawser/v1/private/east/incarnation","record":"i"}` + "\n" + `{"key":"hawser/v1/local/east/refs/65537/n1"}`))
	f.Add([]byte(head + `{"key":"hawser/v1/state/east/future/x","value":"AQI="}`))
	f.Add([]byte(head + `{"key":"hawser/v1/private/west/tokens/t"}` + "\n" + `{}` + "\n" + `{"key":""}`))
	f.Add([]byte(`{"hawserExport":2}`))
	f.Fuzz(func(t *testing.T, file []byte) {
		_, kvs, err := Parse(bytes.NewReader(file), "east")
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, kv := range kvs {
			k, err := kvstore.ParseKey(kv.Key)
			if err != nil || seen[kv.Key] {
				t.Fatalf("took key %q: %v, seen %v", kv.Key, err, seen[kv.Key])
			}
			seen[kv.Key] = true
			if k.Subtree != kvstore.State && k.Cluster != "east" {
				t.Fatalf("took another cluster's %s", k)
			}
			if _, err := kvstore.Decode(k, kv.Value); ignoreUnknown(err) != nil {
				t.Fatalf("took a record that is not valid: %v", err)
			}
		}
	})
}

// FuzzShow is any key with any value: it is shown, on one line of valid JSON,
// with what is wrong with it.
func FuzzShow(f *testing.F) {
	for _, k := range []string{
		"hawser/v1/state/east/nodes/n1", "hawser/v1/state/east/identities/id/65537", "hawser/v1/private/east/incarnation",
		"hawser/v1/local/east/refs/65537/n1", "hawser/v1/state/east/future/x/y", "hawser/v1/local/east/status/n1", "elsewhere", "hawser/v1/state/east/nodes/\xff",
	} {
		f.Add(k, []byte{10, 2, 'n', '1'})
		f.Add(k, []byte("\xff\x00not a record"))
	}
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		e := Decode(kvstore.KV{Key: key, Value: value}, kvstore.Limits{})
		b, err := json.Marshal(e)
		if err != nil || !json.Valid(b) || strings.ContainsRune(string(b), '\n') {
			t.Fatalf("%q: %s, %v", key, b, err)
		}
		if k, err := kvstore.ParseKey(key); err != nil && e.Problem == "" {
			t.Fatalf("a bad key is shown as a good one: %v", k)
		} else if err == nil && k.Kind.Known() {
			if _, derr := kvstore.Decode(k, value); ignoreUnknown(derr) != nil && e.Problem == "" {
				t.Fatalf("a bad record is shown as a good one: %v", derr)
			}
		}
	})
}
