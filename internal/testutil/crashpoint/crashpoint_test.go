// SPDX-License-Identifier: Apache-2.0

package crashpoint

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// childEnv makes the test binary a process that makes files in a directory, on
// many threads, when it is told to.
const childEnv = "CRASHPOINT_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		return
	}
	os.Exit(m.Run())
}

func child(dir string) {
	for range 4 {
		go func() {
			for {
				time.Sleep(time.Microsecond)
			}
		}()
	}
	var line string
	for {
		if _, err := fmt.Scanln(&line); err != nil {
			return
		}
		for i := range 3 {
			done := make(chan struct{})
			go func() {
				path := filepath.Join(dir, fmt.Sprint(i))
				_ = os.WriteFile(path+".new", nil, 0o600)
				_ = os.Rename(path+".new", path)
				close(done)
			}()
			<-done
		}
		fmt.Println("done")
	}
}

func start(t *testing.T, dir string) (*exec.Cmd, func() bool) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, func() bool { // whether it did all
		fmt.Fprintln(in, "go")
		n, _ := out.Read(make([]byte, 16))
		return n > 0
	}
}

// TestEachPoint kills the process at each of its changes: those up to it have
// happened, those behind it have not.
func TestEachPoint(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("watches each system call of a process: needs root")
	}
	const changes = 6 // three files, written and renamed
	for n := 1; n <= changes+1; n++ {
		dir := t.TempDir()
		cmd, work := start(t, dir)
		other, otherWorks := start(t, t.TempDir())
		w, err := Watch(cmd.Process.Pid, n)
		if err != nil {
			t.Fatal(err)
		}
		all := work()
		if !otherWorks() || other.ProcessState != nil {
			t.Fatalf("point %d: another process was killed", n)
		}
		seen, killed, err := w.Stop()
		if err != nil || killed == all || killed != (n <= changes) || len(seen) != min(n, changes) {
			t.Fatalf("point %d: killed %v, all done %v, %v, %v", n, killed, all, seen, err)
		}
		var want []string
		for i := range min(n, changes) {
			name := fmt.Sprint(i / 2)
			if i%2 == 0 {
				want = append(want, name+".new")
			} else {
				want[len(want)-1] = name
			}
		}
		entries, _ := os.ReadDir(dir)
		var have []string
		for _, e := range entries {
			have = append(have, e.Name())
		}
		if !slices.Equal(have, want) {
			t.Errorf("point %d, at %q: files %v, want %v", n, seen[len(seen)-1], have, want)
		}
		if !killed && !work() {
			t.Error("it does not work on when it is watched no more")
		}
		begins := "open for writing /"
		if len(seen)%2 == 0 {
			begins = "rename to /"
		}
		if last := seen[len(seen)-1]; !strings.HasPrefix(last, begins) {
			t.Errorf("point %d is at %q", n, last)
		}
	}
}
