// SPDX-License-Identifier: Apache-2.0

package program

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func run(t *testing.T, file string, args ...string) (name string, list []string, err error) {
	t.Helper()
	var o Options
	cmd := &cobra.Command{Use: "x", RunE: func(*cobra.Command, []string) error { return nil }}
	cmd.Flags().StringVar(&name, "name", "default", "")
	cmd.Flags().StringSliceVar(&list, "list", nil, "")
	o.Bind(cmd, "TESTPROG")
	if file != "" {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	cmd.SetArgs(args)
	err = cmd.Execute()
	return name, list, err
}

func TestPrecedence(t *testing.T) {
	if n, _, err := run(t, ""); n != "default" || err != nil {
		t.Errorf("default: %q, %v", n, err)
	}
	if n, l, err := run(t, "name: file\nlist: [a, b]\n"); n != "file" || len(l) != 2 || err != nil {
		t.Errorf("file: %q, %v, %v", n, l, err)
	}
	t.Setenv("TESTPROG_NAME", "env")
	if n, _, err := run(t, "name: file\n"); n != "env" || err != nil {
		t.Errorf("environment over file: %q, %v", n, err)
	}
	if n, _, err := run(t, "name: file\n", "--name", "flag"); n != "flag" || err != nil {
		t.Errorf("flag over all: %q, %v", n, err)
	}
}

func TestUnknownSettingFails(t *testing.T) {
	_, _, err := run(t, "name: x\nnmae: y\n")
	if err == nil || !strings.Contains(err.Error(), `unknown setting "nmae"`) {
		t.Errorf("got %v", err)
	}
}
