// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// The reference is generated from a list of commands: none is left out of it.
func TestReferenceHasEveryCommand(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/daemons.md")
	if err != nil {
		t.Fatal(err)
	}
	commands := 0
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		if !c.Runnable() || c.HasSubCommands() || c.Hidden {
			return
		}
		commands++
		if !strings.Contains(string(page), "\n## "+c.CommandPath()+"\n") {
			t.Errorf("docs/reference/daemons.md lacks %s: add it in internal/gendocs, and make generate", c.CommandPath())
		}
	}
	if walk(newRoot()); commands < 8 {
		t.Errorf("only %d commands", commands)
	}
}
