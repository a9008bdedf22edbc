// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath/maps"
)

// mirror is one kernel map: what it should have and what it has. Elements that
// it has but should not are left alone until prune.
type mirror[K, V comparable] struct {
	name string
	m    *ebpf.Map
	want map[K]V
	have map[K]V
	// plain takes out of a value what only the programs write; nil: nothing.
	plain func(*V)
	// order is in which order repair writes; it deletes in the reverse one. nil: any.
	order func(k1 K, v1 V, k2 K, v2 V) int
	wrote func() // a test's: called after each change of the kernel's
	// spare is for how many keys there is always room, which only force takes.
	spare int
}

func newMirror[K, V comparable](name string, m *ebpf.Map) (*mirror[K, V], error) {
	return newCountedMirror[K, V](name, m, nil)
}

// newCountedMirror is newMirror of a map into which the programs write as well.
func newCountedMirror[K, V comparable](name string, m *ebpf.Map, plain func(*V)) (*mirror[K, V], error) {
	r := &mirror[K, V]{name: name, m: m, want: map[K]V{}, plain: plain}
	return r, r.refresh()
}

// refresh reads what the kernel has.
func (r *mirror[K, V]) refresh() (err error) {
	r.have, err = maps.Dump[K, V](r.m)
	if r.plain != nil {
		for k, v := range r.have {
			r.plain(&v)
			r.have[k] = v
		}
	}
	return err
}

// set wants an element and writes it if the kernel has another or none. What
// cannot be written is not wanted: the row that it is of comes again, or goes.
func (r *mirror[K, V]) set(k K, v V) (changed bool, err error) {
	was, wanted := r.want[k]
	r.want[k] = v
	if changed, err = r.write(k, v); err == nil {
		return changed, nil
	}
	if delete(r.want, k); wanted {
		r.want[k] = was
	}
	return changed, err
}

func (r *mirror[K, V]) write(k K, v V) (changed bool, err error) {
	if old, ok := r.have[k]; ok && old == v {
		return false, nil
	}
	if _, ok := r.have[k]; !ok && r.spare > 0 && len(r.have)+r.spare >= int(r.m.MaxEntries()) {
		return false, whenFull(r.m, r.name, fmt.Sprintf("write %s %v", r.name, k), unix.ENOSPC)
	}
	if err := r.force(k, v); err != nil {
		return false, err
	}
	return true, nil
}

// force writes an element also where room is spared.
func (r *mirror[K, V]) force(k K, v V) error {
	if err := r.m.Put(k, v); err != nil {
		return whenFull(r.m, r.name, fmt.Sprintf("write %s %v", r.name, k), err)
	}
	r.have[k] = v
	r.tell()
	return nil
}

func (r *mirror[K, V]) tell() {
	if r.wrote != nil {
		r.wrote()
	}
}

// whenFull says what was being done, and what to do about a map without room. What is
// in the map is never given up for something new.
func whenFull(m *ebpf.Map, name, doing string, err error) error {
	noRoom := errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC)
	if noRoom {
		err = fullError{err}
	}
	err = fmt.Errorf("%s: %w", doing, err)
	if !noRoom && !errors.Is(err, errNoNumber) {
		return err
	}
	return fmt.Errorf("the map %s is full, with %d entries; what it has stays, what is new does not work: "+
		"give the agent larger maps (--map-sizes default), or see what fills it (hawser map list): %w", name, m.MaxEntries(), err)
}

// fullError is the kernel's E2BIG or ENOSPC for a map without room, whose texts speak
// of arguments and devices.
type fullError struct{ error }

func (fullError) Error() string { return "the map is full" }

// Unwrap returns the kernel's error.
func (e fullError) Unwrap() error { return e.error }

// del wants an element gone.
func (r *mirror[K, V]) del(k K) (changed bool, err error) {
	delete(r.want, k)
	if _, ok := r.have[k]; !ok {
		return false, nil
	}
	if err := r.m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, fmt.Errorf("delete %s %v: %w", r.name, k, err)
	}
	delete(r.have, k)
	r.tell()
	return true, nil
}

// delWanted is del for an element that is wanted, and nothing for others. It
// stays wanted while it cannot be deleted, so that it can be tried again.
func (r *mirror[K, V]) delWanted(k K) (changed bool, err error) {
	v, ok := r.want[k]
	if !ok {
		return false, nil
	}
	if changed, err = r.del(k); err != nil {
		r.want[k] = v
	}
	return changed, err
}

// repair compares with the kernel: what is missing or different is written,
// what nobody wants is deleted if prune is set. changed is called for each.
func (r *mirror[K, V]) repair(prune bool, changed func(K)) error {
	if err := r.refresh(); err != nil {
		return err
	}
	err := r.rewrite(changed)
	if prune {
		err = errors.Join(err, r.prune(changed))
	}
	return err
}

// rewrite writes what is missing or different.
func (r *mirror[K, V]) rewrite(changed func(K)) error {
	var errs []error
	differs := func(k K) bool { v, ok := r.have[k]; return !ok || v != r.want[k] }
	for _, k := range r.sorted(r.want, differs) {
		if ok, err := r.write(k, r.want[k]); err != nil {
			errs = append(errs, err)
		} else if ok {
			changed(k)
		}
	}
	return errors.Join(errs...)
}

// prune deletes what is in the kernel and not wanted.
func (r *mirror[K, V]) prune(changed func(K)) error {
	var errs []error
	unwanted := func(k K) bool { _, ok := r.want[k]; return !ok }
	for _, k := range slices.Backward(r.sorted(r.have, unwanted)) {
		if ok, err := r.del(k); err != nil {
			errs = append(errs, err)
		} else if ok {
			changed(k)
		}
	}
	return errors.Join(errs...)
}

// sorted are the keys of those of all that are chosen, in the order of writing.
func (r *mirror[K, V]) sorted(all map[K]V, chosen func(K) bool) []K {
	var keys []K
	for k := range all {
		if chosen(k) {
			keys = append(keys, k)
		}
	}
	if r.order != nil {
		slices.SortFunc(keys, func(a, b K) int { return r.order(a, all[a], b, all[b]) })
	}
	return keys
}

// slots is an array: an element that nobody wants is zero.
type slots[V comparable] struct {
	name string
	m    *ebpf.Map
	want map[uint32]V
	have map[uint32]V // the elements that are not zero
	// wrote is a test's: called after each change of the kernel's.
	wrote func()
}

func newSlots[V comparable](name string, m *ebpf.Map) (*slots[V], error) {
	r := &slots[V]{name: name, m: m, want: map[uint32]V{}}
	return r, r.refresh()
}

func (r *slots[V]) refresh() error {
	var zero V
	have := map[uint32]V{}
	err := maps.DumpBatches(r.m, func(k uint32, v V) {
		if v != zero {
			have[k] = v
		}
	})
	if err == nil {
		r.have = have
	}
	return err
}

func (r *slots[V]) set(k uint32, v V) (bool, error) {
	var zero V
	if v == zero {
		delete(r.want, k)
	} else {
		r.want[k] = v
	}
	if r.have[k] == v {
		return false, nil
	}
	if err := r.m.Put(k, v); err != nil {
		return false, fmt.Errorf("write %s %d: %w", r.name, k, err)
	}
	if v == zero {
		delete(r.have, k)
	} else {
		r.have[k] = v
	}
	if r.wrote != nil {
		r.wrote()
	}
	return true, nil
}

func (r *slots[V]) del(k uint32) (bool, error) {
	var zero V
	return r.set(k, zero)
}

func (r *slots[V]) repair(prune bool) error {
	if err := r.refresh(); err != nil {
		return err
	}
	var errs []error
	for k, v := range r.want {
		_, err := r.set(k, v)
		errs = append(errs, err)
	}
	for k := range r.have {
		if _, ok := r.want[k]; !ok && prune {
			_, err := r.del(k)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// bump adds one to an epoch counter. Maps are written before.
func bump(m *ebpf.Map, index uint32) error {
	var epoch uint32
	if err := m.Lookup(index, &epoch); err != nil {
		return fmt.Errorf("read epoch %d of %s: %w", index, m, err)
	}
	if err := m.Put(index, epoch+1); err != nil {
		return fmt.Errorf("bump epoch %d of %s: %w", index, m, err)
	}
	return nil
}
