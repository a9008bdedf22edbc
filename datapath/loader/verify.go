// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	gomaps "maps"
	"runtime"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
)

// newCollection makes those maps of spec that kept does not have, and loads its
// programs, as many at a time as the process has CPUs: nearly all of a load is the
// kernel's verifier, which takes a program on one CPU. The caller closes the
// collection; kept stays its own.
func newCollection(spec *ebpf.CollectionSpec, kept map[string]*ebpf.Map) (*ebpf.Collection, error) {
	bare := *spec
	bare.Programs = nil
	coll, err := ebpf.NewCollectionWithOptions(&bare, ebpf.CollectionOptions{MapReplacements: kept})
	if err != nil {
		return nil, err
	}
	progs := make(map[string]*ebpf.Program, len(spec.Programs))
	var mu sync.Mutex // of progs
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, name := range longestFirst(spec.Programs) {
		group.Go(func() error {
			one := bare
			one.Programs, one.Variables = map[string]*ebpf.ProgramSpec{name: spec.Programs[name]}, nil
			c, err := ebpf.NewCollectionWithOptions(&one, ebpf.CollectionOptions{MapReplacements: coll.Maps})
			if err != nil {
				return err
			}
			defer c.Close()
			mu.Lock()
			defer mu.Unlock()
			progs[name] = c.DetachProgram(name)
			return nil
		})
	}
	err = group.Wait()
	coll.Programs = progs
	if err != nil {
		coll.Close()
		return nil, err
	}
	return coll, nil
}

// longestFirst are the programs' names, those with the most instructions first.
func longestFirst(progs map[string]*ebpf.ProgramSpec) []string {
	return slices.SortedFunc(gomaps.Keys(progs), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(progs[b].Instructions), len(progs[a].Instructions)), cmp.Compare(a, b))
	})
}
