// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/netdev"
)

// fakeKernel and fakeMesh do nothing but count what is taken away.
type fakeKernel struct{ detached []string }

func (k *fakeKernel) AttachEndpoint(string) error                { return errors.New("no device") }
func (k *fakeKernel) DetachEndpoint(d string) error              { k.detached = append(k.detached, d); return nil }
func (k *fakeKernel) Wait(context.Context, string, uint64) error { return nil }

type fakeMesh struct{ withdrawn []netip.Addr }

func (m *fakeMesh) Announce(context.Context, *record) error { return nil }
func (m *fakeMesh) Withdraw(_ context.Context, r *record) error {
	m.withdrawn = append(m.withdrawn, r.addrs()...)
	return nil
}

// testEndpoints are those of a node whose policies are never known, so that no
// ADD gets as far as a device. gone are the devices that are not there.
func testEndpoints(t *testing.T, gone map[string]bool) (*endpoints, *fakeMesh) {
	t.Helper()
	cfg := &Config{Cluster: "east", Node: "n1", PodCIDR: netip.MustParsePrefix("10.1.1.0/24")}
	pool, err := newPools(cfg)
	if err != nil {
		t.Fatal(err)
	}
	store, err := openRecords(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	mesh := &fakeMesh{}
	return &endpoints{
		cfg: cfg, log: slog.New(slog.DiscardHandler), store: store, pool: pool, tables: datapath.NewTables(), ids: &fakeIdentities{},
		kernel: &fakeKernel{}, mesh: mesh, ready: make(chan struct{}), mtu: 1500, flush: func() {},
		gone:  func(r *record) bool { return gone[r.HostDevice] },
		byKey: map[string]*record{}, holds: map[string]bool{}, locks: map[string]chan struct{}{},
	}, mesh
}

// present makes an endpoint of a state, as far as memory, disk and tables go.
func present(t *testing.T, m *endpoints, container, state string) *record {
	t.Helper()
	addr, addr6, err := m.pool.allocate(container + "/eth0")
	if err != nil {
		t.Fatal(err)
	}
	id, err := m.freeID()
	if err != nil {
		t.Fatal(err)
	}
	r := &record{
		ID: id, ContainerID: container, IfName: "eth0", Netns: "/run/netns/" + container, Namespace: "demo", Name: container, Addr: addr, Addr6: addr6,
		State: state, IfIndex: 1000 + uint32(id), HostDevice: netdev.HostDeviceName(container, "eth0"),
	}
	if err := m.keep(r); err != nil {
		t.Fatal(err)
	}
	m.setRow(r)
	return r
}

func addRequest(container string) *hawserv1.AddEndpointRequest {
	return &hawserv1.AddEndpointRequest{ContainerId: container, Netns: "/run/netns/" + container, Ifname: "eth0", Namespace: "demo", Name: container}
}

// fill makes the records' directory one in which nothing can be written, and
// returns what makes it good again.
func fill(t *testing.T, s *recordStore) (free func()) {
	t.Helper()
	was := s.dir
	s.dir = filepath.Join(was, "full")
	if err := os.WriteFile(s.dir, nil, 0o600); err != nil { // a file: not even root makes files in it
		t.Fatal(err)
	}
	return func() { s.dir = was }
}

// An ADD whose record could not be written leaves nothing, and repeated it fails
// again: it may not say that a pod is there which is not.
func TestAddOnAFullDisk(t *testing.T) {
	m, _ := testEndpoints(t, nil)
	free := fill(t, m.store)
	for range 2 {
		if e, err := m.Add(t.Context(), addRequest("c1")); status.Code(err) != codes.Internal {
			t.Errorf("added %v, %v", e, err)
		}
	}
	if n := m.pool.v4.Used(); n != 0 || len(m.snapshot()) != 0 {
		t.Errorf("%d addresses in use, endpoints %v", n, m.snapshot())
	}
	free()
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // or it would wait for the policies
	if _, err := m.Add(ctx, addRequest("c1")); status.Code(err) != codes.Canceled {
		t.Errorf("with room again: %v", err)
	}
}

// Only an endpoint that stands answers an ADD that is repeated.
func TestAddAnswersForWhatStands(t *testing.T) {
	for _, c := range []struct {
		name, state string
		gone        bool
		want        codes.Code
	}{
		{"ready", stateReady, false, codes.OK},
		{"restoring", stateRestoring, false, codes.OK},
		{"half made", stateCreating, false, codes.Canceled},
		{"half removed", stateDeleting, false, codes.Canceled},
		{"its device is gone", stateReady, true, codes.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, _ := testEndpoints(t, map[string]bool{netdev.HostDeviceName("c1", "eth0"): c.gone})
			present(t, m, "c1", c.state)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			e, err := m.Add(ctx, addRequest("c1"))
			if status.Code(err) != c.want {
				t.Fatalf("answer %v, %v; want %v", e, err, c.want)
			}
			if left := len(m.snapshot()); (left == 1) != (c.want == codes.OK) {
				t.Errorf("%d endpoints left", left)
			}
		})
	}
}

// A pod can be deleted while the disk is full.
func TestDeleteOnAFullDisk(t *testing.T) {
	m, mesh := testEndpoints(t, nil)
	r := present(t, m, "c1", stateReady)
	fill(t, m.store)
	// What cannot be written cannot be forgotten there either: the runtime asks again.
	_ = m.Delete(t.Context(), "c1", "eth0")
	if err := m.Delete(t.Context(), "c1", "eth0"); err != nil {
		t.Errorf("deleted again: %v", err)
	}
	if _, ok := m.tables.Endpoints.Get(r.ID); ok || len(m.snapshot()) != 0 || m.pool.v4.Used() != 0 || len(mesh.withdrawn) != 1 {
		t.Errorf("left: row %v, endpoints %v, %d addresses; withdrawn %v", ok, m.snapshot(), m.pool.v4.Used(), mesh.withdrawn)
	}
}
