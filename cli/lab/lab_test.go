// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/cli/clicontext"
	"github.com/hawser-mesh/hawser/cli/session"
)

// TestWhichLab are the ways of saying which lab is meant.
func TestWhichLab(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", home)
	c := clicontext.Context{Name: "lab-mine", Clusters: []clicontext.Cluster{{Name: "east", Socket: "/nowhere.sock"}}}
	file, err := clicontext.Add(&c)
	if err != nil {
		t.Fatal(err)
	}
	c.Name = "prod"
	if _, err := clicontext.Add(&c); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "x.yaml")
	if err := os.WriteFile(other, []byte("name: x\nclusters: [{name: east, socket: /nowhere.sock}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		current, context, name string
		want, says             string
	}{
		{"host", "", "", "lab", ""},
		{"prod", "", "", "lab", ""},
		{"lab-mine", "", "", "mine", ""},
		{"lab-mine", "lab-other", "", "other", ""},
		{"lab-mine", "lab-other", "third", "third", ""},
		{"host", file, "", "mine", ""},
		{"lab-mine", "prod", "", "", "not a lab's"},
		{"lab-mine", other, "", "", "not a lab's"},
	} {
		if err := clicontext.Choose(c.current); err != nil {
			t.Fatal(err)
		}
		o := &options{Session: &session.Session{Context: c.context}, name: c.name}
		got, err := o.lab()
		if got != c.want || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("current %s, --context %q, --name %q: lab %q, %v, want %q %s", c.current, c.context, c.name, got, err, c.want, c.says)
		}
	}
}
