// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// laterObjects has an agent that is built with it run the programs of a later
// version.
const laterObjects = `package objects

import (
	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/internal/testutil/laterbuild"
)

func LoadHawser() (*ebpf.CollectionSpec, error) {
	spec, err := loadHawser()
	if err == nil {
		laterbuild.Alter(spec)
	}
	return spec, err
}
`

// upgradeable puts a link where labs look for the agent, so that a node's next
// start may be of another build.
func (s *suite) upgradeable() error {
	link := filepath.Join(s.dir, "agents", filepath.Base(s.bin.Agent))
	s.own, s.bin.Agent = s.bin.Agent, link
	return errors.Join(os.MkdirAll(filepath.Dir(link), 0o755), os.Symlink(s.own, link))
}

// cmdAgentBuild is `agent-build later|own`: agents that are started from now on
// are of a build with other programs and map layouts, or of this one.
func cmdAgentBuild(s *script, args []string) (string, error) {
	if len(args) != 1 || args[0] != "later" && args[0] != "own" {
		return "", usage("agent-build later|own")
	}
	target := s.own
	if args[0] == "later" {
		var err error
		if target, err = s.buildLater(); err != nil {
			return "", err
		}
		s.ts.Defer(func() { _ = s.useAgent(s.own) })
	}
	return "", s.useAgent(target)
}

func (s *suite) useAgent(path string) error {
	next := s.bin.Agent + ".next"
	return errors.Join(os.Symlink(path, next), os.Rename(next, s.bin.Agent))
}

// buildLater builds the agent with objects.LoadHawser replaced, and with the
// field that laterbuild adds in what is read and written.
func (s *suite) buildLater() (string, error) {
	out := filepath.Join(s.dir, "later", "hawser-agent")
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	dir := filepath.Dir(out)
	o := overlay{dir: dir, Replace: map[string]string{}}
	err := errors.Join(
		os.MkdirAll(dir, 0o755),
		o.replace("datapath/objects/hawser_bpfel.go", "LoadHawser(", "loadHawser("),
		o.add("datapath/objects/later.go", laterObjects),
		o.replace("datapath/maps/layout.go", "\tHits uint64\n}", "\tHits uint64\n\tLater uint64\n}"),
	)
	if err != nil {
		return "", err
	}
	files, err := json.Marshal(o)
	if err != nil {
		return "", err
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, files, 0o600); err != nil {
		return "", err
	}
	// As `make build` builds, so that what is not replaced is in the cache.
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", list, "-o", out, "../../cmd/hawser-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the later agent: %w\n%s", err, text)
	}
	return out, nil
}

// overlay has the go command see other files than there are.
type overlay struct {
	dir     string
	Replace map[string]string
}

// replace changes a text in a file of the repository; it must be there.
func (o *overlay) replace(name, from, to string) error {
	source, err := os.ReadFile(filepath.Join("../..", name))
	if err != nil {
		return err
	}
	if !strings.Contains(string(source), from) {
		return fmt.Errorf("%s has no %q any more", name, from)
	}
	return o.add(name, strings.ReplaceAll(string(source), from, to))
}

// add makes a file.
func (o *overlay) add(name, source string) error {
	path, err := filepath.Abs(filepath.Join("../..", name))
	if err != nil {
		return err
	}
	file := filepath.Join(o.dir, strings.ReplaceAll(name, "/", "_")+".txt")
	o.Replace[path] = file
	return os.WriteFile(file, []byte(source), 0o600)
}
