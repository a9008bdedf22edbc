// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"testing"

	"github.com/hawser-mesh/hawser/datapath/netdev"
)

// What lost its device without a DEL is removed with all that it has; what still
// has one, is being made, or is somebody's at the moment, is not.
func TestVanishedEndpointsAreRemoved(t *testing.T) {
	gone := map[string]bool{}
	for _, c := range []string{"dead", "restored", "stuck", "new", "busy"} {
		gone[netdev.HostDeviceName(c, "eth0")] = true
	}
	m, mesh := testEndpoints(t, gone)
	records := map[string]*record{}
	for c, state := range map[string]string{
		"dead": stateReady, "restored": stateRestoring, "stuck": stateDeleting, "new": stateCreating, "busy": stateReady,
		"alive": stateReady, "back": stateRestoring,
	} {
		records[c] = present(t, m, c, state)
	}
	unlock, err := m.lock(t.Context(), records["busy"].key())
	if err != nil {
		t.Fatal(err)
	}
	left := func() (out []string) {
		for _, r := range m.snapshot() {
			out = append(out, r.ContainerID)
		}
		slices.Sort(out)
		return out
	}
	all := func(*record) bool { return true }
	m.collect(t.Context(), func(r *record) bool { return r.IfIndex == records["alive"].IfIndex })
	if got := left(); len(got) != len(records) {
		t.Fatalf("another device's end left %v", got)
	}
	for range 2 { // it may be repeated
		m.collect(t.Context(), all)
		if got, want := left(), []string{"alive", "back", "busy", "new"}; !slices.Equal(got, want) {
			t.Errorf("left %v, want %v", got, want)
		}
	}
	unlock()
	m.collect(t.Context(), all)
	if got, want := left(), []string{"alive", "back", "new"}; !slices.Equal(got, want) {
		t.Errorf("left %v, want %v", got, want)
	}
	if len(mesh.withdrawn) != 4 || m.pool.v4.Used() != 3 {
		t.Errorf("withdrawn %v, %d addresses in use", mesh.withdrawn, m.pool.v4.Used())
	}
	for c, r := range records {
		_, row := m.tables.Endpoints.Get(r.ID)
		if stays := slices.Contains(left(), c); row != stays {
			t.Errorf("%s: row %v, endpoint %v", c, row, stays)
		}
	}
	// A DEL that comes after all has nothing to do.
	if err := m.Delete(t.Context(), "dead", "eth0"); err != nil {
		t.Error(err)
	}
	stored, err := m.store.load()
	if err != nil || len(stored) != 3 {
		t.Errorf("%d records, %v", len(stored), err)
	}
}
