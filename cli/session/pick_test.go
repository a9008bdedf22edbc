// SPDX-License-Identifier: Apache-2.0

package session

import (
	"strings"
	"testing"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

func TestPick(t *testing.T) {
	rows := []*hawserv1.ServiceInfo{
		{Id: 1, Namespace: "a", Name: "echo"}, {Id: 2, Namespace: "b", Name: "echo"}, {Id: 3, Namespace: "a", Name: "db"},
	}
	for _, c := range []struct {
		namespace, name string
		id              uint32
		code            int
		says            string
	}{
		{"", "db", 3, Done, ""},
		{"", "b/echo", 2, Done, ""},
		{"a", "echo", 1, Done, ""},
		{"a", "a/echo", 1, Done, ""},
		{"", "echo", 0, WrongUse, "a/echo, b/echo"},
		{"a", "b/echo", 0, WrongUse, `--namespace says "a"`},
		{"", "c/echo", 0, No, `in namespace "c"`},
		{"", "", 0, WrongUse, `want NAME or NAMESPACE/NAME`},
		{"", "/echo", 0, WrongUse, `service "/echo": want NAME`},
		{"", "a/", 0, WrongUse, `service "a/": want NAME`},
		{"", "web", 0, No, `no service "web"; see: hawser service list`},
	} {
		got, err := Pick("service", rows, c.namespace, c.name)
		if got.GetId() != c.id || ExitCode(err) != c.code || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("-n %q %s: %v, %v", c.namespace, c.name, got, err)
		}
	}
}
