// SPDX-License-Identifier: Apache-2.0

// Package e2e runs scripts against labs of real processes: every
// testdata/*.txtar is a list of commands and of what must be seen after them.
//
// Start with testdata/demo.txtar, then commands_test.go, which lists the
// commands that scripts have beside those of testscript. Scripts run one after
// the other. Those that begin with `lab demo` share one lab, which is put back
// as it was after each, or made anew after a failed one. How long something takes
// is no part of what they prove: `eventually` is patient, and a script whose load
// was late or too little, with nothing lost, is run again. Needs root.
package e2e
