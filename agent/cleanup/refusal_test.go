// SPDX-License-Identifier: Apache-2.0

package cleanup_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/agent/cleanup"
	"github.com/hawser-mesh/hawser/datapath/loader"
)

// TestWrongPinsAreRefused gives pins that are not the agent's: nothing is removed, and
// the error names what is attached, and the process that has it open.
func TestWrongPinsAreRefused(t *testing.T) {
	for _, attach := range []string{"", loader.AttachClsact} {
		t.Run("attach="+attach, func(t *testing.T) {
			onNode(t, attach, func(n *node) error {
				before, err := everything(n)
				if err != nil {
					return err
				}
				wrong := n.cfg
				wrong.PinPath = filepath.Join(filepath.Dir(n.cfg.PinPath), "none")
				for _, runs := range []bool{false, true} {
					who := ""
					if runs {
						holder, err := hold(t, filepath.Join(n.cfg.PinPath, "programs", "from_host"))
						if err != nil {
							return err
						}
						who = fmt.Sprintf("process %d (sleep)", holder.Process.Pid)
					}
					_, err := cleanup.Run(t.Context(), wrong)
					var elsewhere *cleanup.ElsewhereError
					if !errors.As(err, &elsewhere) {
						t.Errorf("with others' pins: %v", err)
						return nil
					}
					for _, want := range []string{"from_overlay on eth0", "from_host on hawser_net", "from_pod on hwp", "sock_connect4, ", " on " + n.cgroup} {
						if !strings.Contains(err.Error(), want) {
							t.Errorf("%v; want %s", err, want)
						}
					}
					if told := strings.Contains(err.Error(), "; an agent runs: "); told != runs || runs && !slices.Contains(elsewhere.Who, who) {
						t.Errorf("held by %q: %v", who, err)
					}
				}
				if after, err := everything(n); err != nil || !slices.Equal(before, after) {
					t.Errorf("%v\nbefore the refusal:\n%s\nafter:\n%s", err, strings.Join(before, "\n"), strings.Join(after, "\n"))
				}
				return nil
			})
		})
	}
}

// TestLostPins has pins go without what they held: only force takes it off, and it
// is told as long as it is there.
func TestLostPins(t *testing.T) {
	for _, attach := range []string{"", loader.AttachClsact} {
		t.Run("attach="+attach, func(t *testing.T) {
			onNode(t, attach, func(n *node) error {
				right := n.cfg.PinPath
				n.cfg.PinPath = filepath.Join(filepath.Dir(right), "none")
				if attach == loader.AttachClsact {
					if err := os.RemoveAll(right); err != nil {
						return err
					}
				}
				var elsewhere *cleanup.ElsewhereError
				if _, err := cleanup.Run(t.Context(), n.cfg); !errors.As(err, &elsewhere) || !strings.Contains(err.Error(), "from_overlay on eth0") {
					t.Errorf("without its pins: %v", err)
				}
				n.cfg.Force = true
				_, err := cleanup.Run(t.Context(), n.cfg)
				if pinned := attach == ""; (err != nil) != pinned || pinned && !strings.Contains(err.Error(), "from_overlay@eth0") {
					t.Errorf("forced: %v; pinned: %v", err, pinned)
				}
				if left, err := loader.Elsewhere(n.cfg.PinPath, n.cgroup); err != nil || len(left) > 0 {
					t.Errorf("still attached: %v, %v", left, err)
				}
				if on, err := onCgroup(n.cgroup); err != nil || on > 0 {
					t.Errorf("%d programs are on the cgroup, %v", on, err)
				}
				n.cfg.PinPath = right
				return nil
			})
		})
	}
}

// TestOthersAreNotCounted has an agent in another network namespace, and on another
// cgroup: it is nobody's here.
func TestOthersAreNotCounted(t *testing.T) {
	onNode(t, "", func(n *node) error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		none := filepath.Join(filepath.Dir(n.cfg.PinPath), "none")
		if got, err := loader.Elsewhere(none, cgroup(t, "other")); err != nil || len(got) > 0 {
			t.Errorf("on a cgroup beside: %v, %v", got, err)
		}
		if got, err := loader.Elsewhere(none, ""); err != nil || len(got) > 0 {
			t.Errorf("in a network namespace of its own: %v, %v", got, err)
		}
		if got, err := loader.Elsewhere(none, n.cgroup); err != nil || len(got) == 0 {
			t.Errorf("on the cgroup itself: %v, %v", got, err)
		}
		return nil
	})
}

// TestHalfReplacedIsOwn has an agent end while it replaces its programs: what is still
// attached is pinned no more, and uses the maps that are.
func TestHalfReplacedIsOwn(t *testing.T) {
	onNode(t, loader.AttachClsact, func(n *node) error {
		pins, err := filepath.Glob(filepath.Join(n.cfg.PinPath, "programs", "from_*"))
		if err != nil || len(pins) == 0 {
			return errors.Join(err, errors.New("no program is pinned"))
		}
		for _, pin := range pins {
			if err := os.Remove(pin); err != nil {
				return err
			}
		}
		if got, err := loader.Elsewhere(n.cfg.PinPath, n.cgroup); err != nil || len(got) > 0 {
			t.Errorf("half replaced: %v, %v", got, err)
		}
		return nil
	})
}

// everything is what can be found with the right pins, and the host's devices.
func everything(n *node) ([]string, error) {
	out, err := snapshot()
	items, err2 := cleanup.Find(n.cfg)
	for _, it := range items {
		out = append(out, fmt.Sprintf("%s %s %d", it.Kind, it.Name, it.ID))
	}
	return out, errors.Join(err, err2)
}

// hold has another process hold a program until the test ends.
func hold(t *testing.T, pin string) (*exec.Cmd, error) {
	t.Helper()
	p, err := ebpf.LoadPinnedProgram(pin, nil)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Dup(p.FD())
	if err := errors.Join(err, p.Close()); err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "program")
	holder := exec.CommandContext(t.Context(), "sleep", "60")
	holder.ExtraFiles = []*os.File{file}
	if err := errors.Join(holder.Start(), file.Close()); err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	return holder, nil
}
