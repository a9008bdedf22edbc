// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

// cmdHawser is the real CLI, asking the script's lab.
func cmdHawser(s *script, args []string) (string, error) {
	if s.world == nil {
		return "", errors.New("no lab: start the script with `lab demo`")
	}
	const limit = 3 * time.Minute // a node that gets power waits a minute for its agent
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.bin.Hawser, s.world.flags(args)...)
	cmd.Dir = s.ts.MkAbs(".")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	fmt.Fprint(s.ts.Stderr(), stderr.String())
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return out.String(), no("hawser %s: exit code %d: %s", strings.Join(args, " "), exit.ExitCode(), strings.TrimSpace(stderr.String()))
	}
	return out.String(), err
}

// statusWait is how long `mesh status --wait` and `policy status --wait` wait.
const statusWait = "60s"

// flags makes a command line ask this lab.
func (w *world) flags(args []string) []string {
	if len(args) > 0 && args[0] == "lab" {
		return append([]string{"lab", "--name", w.lab.Name()}, args[1:]...)
	}
	global := []string{"--context", w.context}
	if slices.Contains(args, "--wait") && slices.Contains(args, "status") {
		global = append(global, "--timeout", statusWait)
	}
	return append(global, args...)
}

// cmdJSON is `json PATH [OPERATOR VALUE] [-- hawser ARG…]`: a value of what the
// CLI prints with -o json, or printed last, is as wanted. Without an operator it
// is printed. A path is .name, [number], [name=value] and .length.
// Operators: == != >= contains lacks.
func cmdJSON(s *script, args []string) (string, error) {
	var source string
	if i := slices.Index(args, "--"); i >= 0 {
		if len(args) < i+2 || args[i+1] != "hawser" {
			return "", usage("json PATH [OPERATOR VALUE] [-- hawser ARG…]")
		}
		out, err := cmdHawser(s, append(slices.Clone(args[i+2:]), "-o", "json"))
		var answer *errNo
		if err != nil && (!errors.As(err, &answer) || out == "") {
			return "", err
		}
		source, args = out, args[:i]
	} else {
		source = s.ts.ReadFile("stdout")
	}
	if len(args) != 1 && len(args) != 3 {
		return "", usage("json PATH [OPERATOR VALUE] [-- hawser ARG…]")
	}
	var v any
	d := json.NewDecoder(strings.NewReader(source))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return "", fmt.Errorf("not JSON: %w: %s", err, source)
	}
	v, err := walk(v, args[0])
	if err != nil {
		return "", fmt.Errorf("%w, in %s", err, source)
	}
	if len(args) == 1 {
		return fmt.Sprintln(v), nil
	}
	return "", compare(v, args[0], args[1], args[2])
}

func walk(v any, path string) (any, error) {
	steps := regexp.MustCompile(`\.[A-Za-z0-9_-]+|\[[^\]]+\]`).FindAllString(path, -1)
	if strings.Join(steps, "") != path {
		return nil, fmt.Errorf("path %q is malformed", path)
	}
	for i, step := range steps {
		at := strings.Join(steps[:i+1], "")
		list, _ := v.([]any)
		object, _ := v.(map[string]any)
		switch {
		case step == ".length" && object == nil:
			v = json.Number(strconv.Itoa(len(list)))
		case step[0] == '.':
			v = object[step[1:]] // null when it is not there
		case strings.Contains(step, "="):
			name, want, _ := strings.Cut(step[1:len(step)-1], "=")
			i := slices.IndexFunc(list, func(e any) bool {
				o, _ := e.(map[string]any)
				return fmt.Sprint(o[name]) == want
			})
			if i < 0 {
				return nil, no("nothing at %s", at)
			}
			v = list[i]
		default:
			n, err := strconv.Atoi(step[1 : len(step)-1])
			if err != nil || n >= len(list) {
				return nil, no("nothing at %s", at)
			}
			v = list[n]
		}
	}
	return v, nil
}

func compare(v any, path, operator, want string) error {
	got := fmt.Sprint(v)
	if v == nil {
		got = "0" // a counter that never moved
	}
	var ok bool
	switch operator {
	case "==":
		ok = got == want
	case "!=":
		ok = got != want
	case ">=":
		a, err1 := strconv.ParseFloat(got, 64)
		b, err2 := strconv.ParseFloat(want, 64)
		ok = a >= b
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
	case "contains":
		ok = strings.Contains(got, want)
	case "lacks":
		ok = !strings.Contains(got, want)
	default:
		return fmt.Errorf("no operator %q", operator)
	}
	if !ok {
		return no("%s is %s, not %s %s", path, got, operator, want)
	}
	return nil
}

// cmdSet is `set VARIABLE COMMAND…`: what the command prints, on one line, with
// a number after "+" added when VARIABLE is NAME+NUMBER.
func cmdSet(s *script, args []string) (string, error) {
	if len(args) < 2 {
		return "", usage("set VARIABLE[+NUMBER] COMMAND [ARG…]")
	}
	name, add, plus := strings.Cut(args[0], "+")
	out := strings.Join(args[1:], " ")
	if c, ok := commands()[args[1]]; ok {
		var err error
		if out, err = c(s, args[2:]); err != nil {
			return out, err
		}
	}
	out = strings.TrimSpace(out)
	if plus {
		a, err1 := strconv.Atoi(out)
		b, err2 := strconv.Atoi(add)
		if err := errors.Join(err1, err2); err != nil {
			return "", err
		}
		out = strconv.Itoa(a + b)
	}
	s.ts.Setenv(name, out)
	return out + "\n", nil
}

// cmdAddress prints the address of a place.
func cmdAddress(s *script, args []string) (string, error) {
	if len(args) != 1 {
		return "", usage("address PLACE")
	}
	p, err := s.place(args[0])
	return p.addr.String() + "\n", err
}

// cmdIdentity prints the number of a pod's identity.
func cmdIdentity(s *script, args []string) (string, error) {
	if len(args) != 1 {
		return "", usage("identity CLUSTER/POD")
	}
	p, err := s.place(args[0])
	if err != nil {
		return "", err
	}
	n, err := s.identityOf(p)
	return fmt.Sprintln(n), err
}

// identityOf finds a pod's identity where a user does: the number that
// `hawser identity list` shows for its labels.
func (s *script) identityOf(p place) (uint32, error) {
	if p.pod == nil {
		return 0, errors.New("only pods have an identity of their own")
	}
	want := labelsOf(p)
	slices.Sort(want)
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	r, err := s.world.mesh[p.pod.Cluster].ListIdentities(ctx, &hawserv1.ListIdentitiesRequest{})
	if err != nil {
		return 0, err
	}
	for _, i := range r.GetIdentities() {
		have := slices.Clone(i.GetLabels())
		if slices.Sort(have); slices.Equal(have, want) {
			return i.GetNumber(), nil
		}
	}
	return 0, fmt.Errorf("no identity has the labels %v", want)
}
