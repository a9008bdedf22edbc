// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/lab"
)

// owner is a test run's claim to the labs whose names begin with its number: a
// file that is locked as long as the run lives, however it dies. A number alone
// says nothing, since processes in other namespaces may have the same.
type owner struct {
	number int
	file   *os.File
}

const (
	ownerSuffix = ".owner"
	ownerEnv    = "HAWSER_E2E_OWNER" // the number, for the tests of this process
)

// newOwner takes the process's number, or the next that nobody has.
func newOwner() (*owner, error) {
	if err := os.MkdirAll(lab.RunDir, 0o755); err != nil {
		return nil, err
	}
	const tries = 100
	for n := os.Getpid(); n < os.Getpid()+tries; n++ {
		f, err := lock(n)
		if err == nil {
			return &owner{n, f}, os.Setenv(ownerEnv, strconv.Itoa(n))
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, err
		}
	}
	return nil, errors.New("no number is free for labs")
}

func ownerFile(n int) string {
	return filepath.Join(lab.RunDir, fmt.Sprintf("e2e%d%s", n, ownerSuffix))
}

func lock(n int) (*os.File, error) {
	f, err := os.OpenFile(ownerFile(n), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// remove removes the labs and gives the number up.
func (o *owner) remove() {
	prefix := fmt.Sprintf("e2e%d", o.number)
	for _, name := range lab.Names() {
		if kind, ok := strings.CutPrefix(name, prefix); ok && len(kind) == 1 {
			if err := down(name); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	}
	_ = os.Remove(o.file.Name()) // gone already is as good
	o.file.Close()
	_ = os.Remove(lab.RunDir) // stays while others are in it
}

// removeDeadLabs removes those of runs that died.
func removeDeadLabs() {
	files, _ := filepath.Glob(filepath.Join(lab.RunDir, "e2e*"+ownerSuffix)) // the pattern is well formed
	for _, path := range files {
		var n int
		if _, err := fmt.Sscanf(filepath.Base(path), "e2e%d"+ownerSuffix, &n); err != nil {
			continue
		}
		f, err := lock(n)
		if err != nil {
			continue // it lives
		}
		(&owner{n, f}).remove()
	}
}

// labName is the name of one of this run's labs.
func labName(kind string) string { return fmt.Sprintf("e2e%s%c", os.Getenv(ownerEnv), kind[0]) }
