// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// tries is how often a script is run whose load was not undisturbed: late, or too
// little of it, with nothing lost, refused or reset. That proves nothing, in
// neither direction; one run must be without a fault.
const tries = 3

// serial lets one script run at a time and keeps the log of those that pass to
// itself. Its outcome is a try's: only the last counts for the test.
type serial struct {
	*testing.T
	log     *strings.Builder
	runs    map[string]*script
	outcome *outcome // nil: of all scripts
	// failures are the ends of the failed scripts' logs, of all scripts.
	failures map[string]string
}

// outcome is how a try ended.
type outcome struct{ failed, skipped bool }

func (t serial) Parallel() {}

func (t serial) Verbose() bool { return false }

func (t serial) Log(args ...any) { fmt.Fprintln(t.log, args...) }

// Failed reports whether this try has failed.
func (t serial) Failed() bool { return t.outcome.failed }

// Errorf fails the try, which goes on.
func (t serial) Errorf(format string, args ...any) {
	fmt.Fprintf(t.log, format+"\n", args...)
	t.outcome.failed = true
}

// FailNow ends the try.
func (t serial) FailNow() {
	if t.outcome == nil {
		t.T.FailNow()
	}
	t.outcome.failed = true
	runtime.Goexit()
}

// Fatal is Log and FailNow.
func (t serial) Fatal(args ...any) {
	if t.outcome == nil {
		t.T.Fatal(args...)
	}
	t.Log(args...)
	t.FailNow()
}

// Skip ends the try without a failure.
func (t serial) Skip(...any) {
	t.outcome.skipped = true
	runtime.Goexit()
}

// Run runs a script, again when its failure says nothing.
func (t serial) Run(name string, f func(testscript.T)) {
	t.T.Run(name, func(inner *testing.T) {
		start := time.Now()
		var sub serial
		for n := 1; ; n++ {
			sub = serial{T: inner, log: &strings.Builder{}, runs: t.runs, outcome: &outcome{}}
			done := make(chan struct{})
			go func() {
				defer close(done)
				f(sub)
			}()
			<-done
			s := t.runs[inner.Name()]
			if !sub.outcome.failed || s == nil || s.undecided == "" || n == tries {
				break
			}
			fmt.Printf("again %-21s %5.1f s  %s\n", name, time.Since(start).Seconds(), s.undecided)
		}
		s, verdict := t.runs[inner.Name()], "ok  "
		if sub.outcome.failed {
			verdict = "FAIL"
			inner.Log("\n" + sub.log.String() + s.lastDrops())
			t.failures[name] = end(sub.log.String())
		}
		fmt.Printf("%s %-22s %5.1f s  %s\n", verdict, name, time.Since(start).Seconds(), summary(s))
		switch {
		case sub.outcome.failed:
			inner.FailNow()
		case sub.outcome.skipped:
			inner.SkipNow()
		}
	})
}

// end is the end of a script's log: what it ran last, what that said, and why it
// failed.
func end(log string) string {
	const most = 12
	lines := strings.Split(strings.TrimSpace(log), "\n")
	return strings.Join(lines[max(0, len(lines)-most):], "\n")
}
