// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/lab"
)

// TestAddPodIsUndone adds pods whose ADD fails: nothing of them may stay, and
// the same name works afterwards.
func TestAddPodIsUndone(t *testing.T) {
	name := newName(t, "u")
	l, err := lab.Up(t.Context(), lab.NewSpec(name, 1, 1), lab.Options{Binaries: programs(t)})
	must(t, err)
	for _, c := range [][2]string{{"picky", "these labels will not do"}, {"killer", "east/killer"}} {
		pod, says := c[0], c[1]
		if _, err := lab.AddPod(t.Context(), name, "east", lab.PodSpec{Name: pod}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("pod %s was added: %v, want an error with %q", pod, err, says)
		}
		for _, dir := range []string{"/run/netns", filepath.Join(lab.RunDir, name, "hosts")} {
			if found, _ := filepath.Glob(filepath.Join(dir, "*"+pod)); len(found) > 0 {
				t.Errorf("left of pod %s: %v", pod, found)
			}
		}
		cgroups, err := exec.Command("find", "/sys/fs/cgroup", "-path", "*hawser-lab-"+name+"/*/"+pod).Output()
		if err != nil || len(cgroups) > 0 {
			t.Errorf("left of pod %s: %s, %v", pod, cgroups, err)
		}
	}
	must(t, l.Restart(t.Context(), lab.AgentProgram, "east-1"))
	l, err = lab.Open(name)
	must(t, err)
	wantState(t, l, "ready")
	for _, retry := range []error{errors.New("refused first"), nil} { // the agent that was killed refuses anew
		_, err := lab.AddPod(t.Context(), name, "east", lab.PodSpec{Name: "picky"})
		if (err == nil) != (retry == nil) {
			t.Errorf("pod picky: %v, want %v", err, retry)
		}
	}
	l, err = lab.Open(name)
	must(t, err)
	wantState(t, l, "ready")
}

// TestRestartWithoutKeyspace restarts an agent while the API server is down:
// the drill is over when the agent answers. One that never does keeps nobody
// from restarting others.
func TestRestartWithoutKeyspace(t *testing.T) {
	name := newName(t, "r")
	l, err := lab.Up(t.Context(), lab.NewSpec(name, 1, 1), lab.Options{Binaries: programs(t)})
	must(t, err)
	must(t, l.Kill(t.Context(), lab.APIServerProgram, "east"))
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	must(t, l.Restart(ctx, lab.AgentProgram, "east-1"))
	wantState(t, l, "damaged")

	before := pidOf(t, name, "east-1")
	t.Setenv("LAB_TEST_MUTE_AGENT", "1")
	waiting, giveUp := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Restart(waiting, lab.AgentProgram, "east-1") }()
	for pidOf(t, name, "east-1") == before {
		if ctx.Err() != nil {
			t.Fatal("the agent was not started again")
		}
		time.Sleep(time.Millisecond)
	}
	other, err := lab.Open(name)
	must(t, err)
	// Half as long as the mute agent is waited for.
	quick, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	must(t, other.Restart(quick, lab.APIServerProgram, "east"))
	giveUp()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the restart of a mute agent ended with %v", err)
	}
}

// pidOf is the process of a row of the lab's status; 0 while it is dead.
func pidOf(t *testing.T, name, row string) int {
	t.Helper()
	l, err := lab.Open(name)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for _, r := range l.Status(ctx).Rows {
		if r.Name == row {
			return r.PID
		}
	}
	return 0
}
