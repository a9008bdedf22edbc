// SPDX-License-Identifier: Apache-2.0

package cleanup

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hawser-mesh/hawser/datapath/loader"
)

// object is a map or a program of the kernel.
type object struct {
	kind string
	id   uint32
}

// holders are the other processes that have maps and programs open. A process
// that ends meanwhile is none.
func holders() map[object][]string {
	out := map[object][]string{}
	processes, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	for _, dir := range processes {
		pid := filepath.Base(dir)
		if pid == strconv.Itoa(os.Getpid()) {
			continue
		}
		objects := heldBy(dir)
		if len(objects) == 0 {
			continue
		}
		name, _ := os.ReadFile(filepath.Join(dir, "comm"))
		who := fmt.Sprintf("process %s (%s)", pid, strings.TrimSpace(string(name)))
		for o := range objects {
			out[o] = append(out[o], who)
		}
	}
	return out
}

func heldBy(process string) map[object]bool {
	out := map[object]bool{}
	fds, _ := os.ReadDir(filepath.Join(process, "fd"))
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join(process, "fd", fd.Name()))
		if err != nil || !strings.Contains(target, "bpf-") {
			continue
		}
		info, _ := os.ReadFile(filepath.Join(process, "fdinfo", fd.Name()))
		for line := range strings.Lines(string(info)) {
			field, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
			id, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				continue
			}
			switch field {
			case "map_id":
				out[object{loader.KindMap, uint32(id)}] = true
			case "prog_id":
				out[object{loader.KindProgram, uint32(id)}] = true
			}
		}
	}
	return out
}
