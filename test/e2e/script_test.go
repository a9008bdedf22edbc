// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hawser-mesh/hawser/cli/monitor"
)

// script is the state of one running script.
type script struct {
	*suite
	t      serial
	ts     *testscript.TestScript
	world  *world // nil before `lab`
	counts map[string]uint64
	// undecided is why the script's failure says nothing: its load found nothing
	// lost, but the machine had too little time for it.
	undecided string
	loads     map[string]*loadRun
	streams   map[string]*openStream
	asking    *asking
	// upstream stops the played resolver, when there is one.
	upstream func()

	externals map[string]place

	requests *requests
	dialing  *dialing
	// events of the lab, and how many there were when the script began
	events       *events
	eventsBefore int
}

// count adds to the numbers in the script's line of the summary.
func (s *script) count(what string, n uint64) { s.counts[what] += n }

// command is a command of scripts. What it returns is its standard output. An
// errNo says that the answer is no: after a "!" that is what is wanted.
type command func(s *script, args []string) (string, error)

// errNo is an answer, other errors are failures to ask.
type errNo struct{ why string }

func (e *errNo) Error() string { return e.why }

func no(format string, a ...any) error { return &errNo{fmt.Sprintf(format, a...)} }

func usage(text string) error { return errors.New("usage: " + text) }

type scriptKey struct{}

// adapt makes a command one of testscript's.
func adapt(c command) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		s := ts.Value(scriptKey{}).(*script)
		s.ts = ts
		out, err := c(s, args)
		fmt.Fprint(ts.Stdout(), out)
		if err != nil {
			fmt.Fprintln(ts.Stderr(), err)
		}
		var answer *errNo
		switch {
		case neg && err == nil:
			ts.Fatalf("unexpected success")
		case neg && errors.As(err, &answer):
		case err != nil:
			ts.Fatalf("%v", err)
		}
	}
}

// slack is how many times slower than a quiet machine one may be that is busy.
const slack = 4

// eventually runs a command again and again until it succeeds (or, with "!",
// answers no), and tells what it said last when it never does. TIME is enough on a
// quiet machine and says only when to give up: there are slack times as long.
func eventually(s *script, args []string) (string, error) {
	if len(args) < 2 {
		return "", usage("eventually TIME [!] COMMAND [ARG…]")
	}
	limit, err := time.ParseDuration(args[0])
	if err != nil {
		return "", err
	}
	limit *= slack
	args, neg := args[1:], false
	if args[0] == "!" {
		args, neg = args[1:], true
	}
	c, ok := commands()[args[0]]
	if !ok {
		return "", fmt.Errorf("no command %q", args[0])
	}
	const pause = 30 * time.Millisecond
	for end := time.Now().Add(limit); ; time.Sleep(pause) {
		out, err := c(s, args[1:])
		var answer *errNo
		if err == nil && !neg || neg && errors.As(err, &answer) {
			return out, nil
		}
		if time.Now().After(end) {
			return out, fmt.Errorf("not within %s; last: %w", limit, orElse(err, "it succeeded"))
		}
	}
}

func orElse(err error, text string) error {
	if err == nil {
		return errors.New(text)
	}
	return err
}

// runScripts runs all scripts, or those that -run chooses, one after the other.
func runScripts(t *testing.T, s *suite) {
	cmds := map[string]func(*testscript.TestScript, bool, []string){"eventually": adapt(eventually)}
	for name, c := range commands() {
		cmds[name] = adapt(c)
	}
	runs, failures := map[string]*script{}, map[string]string{}
	testscript.RunT(serial{T: t, runs: runs, failures: failures}, testscript.Params{
		Condition: func(cond string) (bool, error) {
			if cond == "shared" {
				return os.Getenv(sharedEtcd) != "", nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Dir: "testdata", Cmds: cmds, RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			w := &script{suite: s, t: e.T().(serial), counts: map[string]uint64{}, loads: map[string]*loadRun{}, streams: map[string]*openStream{}}
			e.Values[scriptKey{}] = w
			e.Setenv("HAWSER", s.bin.Hawser)
			e.Setenv("PATH", os.Getenv("PATH"))
			runs[w.t.Name()] = w
			return nil
		},
	})
	for _, w := range s.labs {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	}
	// Once more at the end, where the last lines of a long log are all that is read.
	for _, name := range slices.Sorted(maps.Keys(failures)) {
		fmt.Printf("\nFAIL %s, its end:\n%s\n", name, failures[name])
	}
}

// lastDrops are the drops that nodes reported last, for who looks into a
// failure.
func (s *script) lastDrops() string {
	if s == nil || s.events == nil {
		return ""
	}
	const most = 15
	all := s.events.since(s.eventsBefore)
	out := fmt.Sprintf("%d drops were reported, the last:\n", len(all))
	for _, d := range all[max(0, len(all)-most):] {
		out += "  " + monitor.Line(d) + "\n"
	}
	return out
}

// summary is what a script counted, as words.
func summary(s *script) string {
	if s == nil {
		return ""
	}
	var out []string
	for _, what := range slices.Sorted(maps.Keys(s.counts)) {
		out = append(out, fmt.Sprintf("%s %d", what, s.counts[what]))
	}
	return strings.Join(out, ", ")
}
