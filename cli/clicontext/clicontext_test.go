// SPDX-License-Identifier: Apache-2.0

package clicontext

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// home gives the test a user of its own.
func home(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", dir)
	return filepath.Join(dir, "hawser", "contexts")
}

func remote(name string) *Context {
	return &Context{Name: name, Clusters: []Cluster{{Name: "east", Address: "192.0.2.1:4244", TLSDir: "/tls"}}}
}

func TestUsersContexts(t *testing.T) {
	dir := home(t)
	name := "test-" + filepath.Base(filepath.Dir(filepath.Dir(dir)))
	path, err := Add(remote(name))
	if err != nil || path != filepath.Join(dir, name+".yaml") {
		t.Fatalf("%s, %v", path, err)
	}
	if err := Choose(name); err != nil {
		t.Fatal(err)
	}
	if got, err := Current(); err != nil || got != name {
		t.Errorf("current %q, %v", got, err)
	}
	c, err := Load("")
	if err != nil || c.Clusters[0].Endpoint() != "192.0.2.1:4244" || c.Clusters[0].TLSDir != "/tls" {
		t.Errorf("loaded %+v, %v", c, err)
	}
	if _, err := Load("nope"); err == nil || !strings.Contains(err.Error(), name) || !strings.HasSuffix(err.Error(), ", host") {
		t.Errorf("unknown context: %v; should name those there are", err)
	}
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, f := range all {
		found = found || f.Name == name && f.Current && f.File == path
	}
	if !found || all[len(all)-1].Name != "host" {
		t.Errorf("all: %+v", all)
	}
	if err := Choose("host"); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(""); err != nil || c.Clusters[0].Socket != DefaultAPIServerSocket {
		t.Errorf("this host is %+v, %v", c, err)
	}
	// A context that is gone is nobody's choice.
	if err := Choose(name); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got, err := Current(); err != nil || got == name {
		t.Errorf("current %q, %v", got, err)
	}
	if err := Choose(name); err == nil {
		t.Error("chose a context that is gone")
	}
}

func TestContextsThatCannotBeUsed(t *testing.T) {
	dir := t.TempDir()
	for text, says := range map[string]string{
		"name: x\n":                  "lists no clusters",
		"clusters: [{name: east}]\n": "socket or address",
		"clusters: [{name: east, address: 'h:1'}]\n":                         "tlsDir are needed",
		"clusters: [{address: 'h:1', tlsDir: d}]\n":                          "name and tlsDir",
		"clusters: [{name: east, address: h, tlsDir: d}]\n":                  "want HOST:PORT",
		"clusters: [{name: east, address: 'h:1', tlsDir: d, colour: red}]\n": "colour",
		"clusters: [{name: east, socket: s, etcd: {endpoint: 'h:1'}}]\n":     "etcd: endpoint and tlsDir",
	} {
		path := filepath.Join(dir, "x.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: error %v, want %q in it", text, err, says)
		}
	}
	path := filepath.Join(dir, "good.yaml")
	if err := os.WriteFile(path, []byte("clusters: [{name: east, address: 'h:1', tlsDir: admin, etcd: {endpoint: 'h:2', tlsDir: own}}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(path); err != nil || c.Clusters[0].TLSDir != filepath.Join(dir, "admin") || c.Clusters[0].Etcd.TLSDir != filepath.Join(dir, "own") {
		t.Errorf("%+v, %v: a relative directory is below the file's", c, err)
	}
}
