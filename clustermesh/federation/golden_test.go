// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

// What released versions sent, a directory each. They are written once, with
// HAWSER_GOLDEN=<version>, and never changed: a test that fails here has found
// that this version does not understand, or does not keep, what that one says.
const (
	goldenDir  = "testdata/golden"
	thisGolden = "v0.1" // of the version in the making; must exist
)

// golden is one message: a frame of the stream, or a record under its key below
// state/west/.
type golden struct {
	file string
	key  string
	msg  proto.Message
}

// goldens has every kind of frame and record, with every field set.
func goldens() []golden {
	pos := &keyspacev1.Position{Incarnation: "2b6f3c1e-0000-4000-8000-000000000001", Revision: 1234}
	cluster := &keyspacev1.Cluster{Name: "west", Id: 2, PodCidrs: []string{"10.2.0.0/16"}, NodeCidrs: []string{"192.168.2.0/24"},
		ServiceCidrs: []string{"172.18.0.0/16"}, Mesh: &keyspacev1.MeshParameters{ClusterBits: 8, TunnelProtocol: "vxlan", TunnelPort: 8472, Encryption: "off"},
		Capabilities: []string{"one"}, Endpoints: []string{"192.0.2.1:4243"}, Version: "v0.1.0", UpdatedAt: 1}
	num := uint32(2<<16 + 7)
	tcp := keyspacev1.Protocol_PROTOCOL_TCP
	frame := func(file string, f *federationv1.Frame) golden { return golden{file: "frame-" + file, msg: f} }
	return []golden{
		frame("hello", &federationv1.Frame{Body: &federationv1.Frame_Hello{Hello: &federationv1.Hello{ProtocolMin: 1, ProtocolMax: 1,
			Capabilities: []string{"expire-after", "explain"}, Cluster: "west", ClusterId: 2, Incarnation: pos.GetIncarnation(), Version: "v0.1.0",
			Description: cluster, ExpireAfter: int64(24 * time.Hour)}}}),
		frame("subscribe", &federationv1.Frame{Body: &federationv1.Frame_Subscribe{Subscribe: &federationv1.Subscribe{Kinds: []string{"ips"}, Position: pos}}}),
		frame("resync", &federationv1.Frame{Body: &federationv1.Frame_Resync{Resync: &federationv1.Resync{
			Mode: federationv1.Resync_MODE_SNAPSHOT, Incarnation: pos.GetIncarnation(), Revision: 1234, Reason: "first sync", Target: 1234}}}),
		frame("batch", &federationv1.Frame{Body: &federationv1.Frame_Batch{Batch: &federationv1.Batch{Sequence: 1, ChangesZstd: goldenChanges(),
			Revision: 1234, SnapshotEnd: true, Snapshot: true, Count: 2, OldestAt: 1}}}),
		frame("ack", &federationv1.Frame{Body: &federationv1.Frame_Ack{Ack: &federationv1.Ack{Sequence: 1, Position: pos}}}),
		frame("heartbeat", &federationv1.Frame{Body: &federationv1.Frame_Heartbeat{Heartbeat: &federationv1.Heartbeat{
			Time: 5, Position: pos, EchoTime: 4, EchoHeld: 3, Pending: 2}}}),
		frame("goodbye", &federationv1.Frame{Body: &federationv1.Frame_Goodbye{Goodbye: &federationv1.Goodbye{Reason: "sequence", Detail: "batch 3 came after batch 1"}}}),
		frame("explain", &federationv1.Frame{Body: &federationv1.Frame_Explain{Explain: &federationv1.Explain{Id: 3, Egress: true,
			Self: &federationv1.ExplainEnd{Labels: []string{"k8s:app=echo"}, Address: "10.2.1.5"},
			Peer: &federationv1.ExplainEnd{Labels: []string{"k8s:app=client"}, Address: "10.1.1.2"}, Protocol: 6, Port: 8080}}}),
		frame("explanation", &federationv1.Frame{Body: &federationv1.Frame_Explanation{Explanation: &federationv1.Explanation{Id: 3,
			Outcome: federationv1.Explanation_OUTCOME_ANSWERED, Allowed: true, Reason: "demo/allow-echo", Audited: true}}}),
		frame("trust", &federationv1.Frame{Body: &federationv1.Frame_Trust{Trust: &federationv1.Trust{Bundle: [][]byte{{1, 2}, {3}}}}}),
		frame("trust-ack", &federationv1.Frame{Body: &federationv1.Frame_TrustAck{TrustAck: &federationv1.TrustAck{Sha256: bytes.Repeat([]byte{9}, 32)}}}),
		{"record-cluster", "cluster", cluster},
		{"record-node", "nodes/n1", &keyspacev1.Node{Name: "n1", Cluster: "west", Addresses: []*keyspacev1.NodeAddress{{Type: keyspacev1.NodeAddress_TYPE_INTERNAL, Ip: "192.168.2.1"}},
			PodCidrs: []string{"10.2.1.0/24"}, TunnelAddress: "192.168.2.1", WireguardPublicKey: bytes.Repeat([]byte{7}, 32), Mtu: 1500, BootId: "b", Zone: "z",
			Region: "r", Labels: map[string]string{"a": "b"}, Capabilities: []string{"one"}, Version: "v0.1.0", UpdatedAt: 1}},
		{"record-identity", "identities/id/131079", &keyspacev1.Identity{Number: num, Labels: []string{"k8s:app=echo", "mesh:cluster=west"}, UpdatedAt: 1}},
		{"record-identity-labels", "identities/labels/" + strings.Repeat("ab", 32), &keyspacev1.IdentityRef{Number: num, UpdatedAt: 1}},
		{"record-ip", "ips/10.2.1.5%2F32", &keyspacev1.IPEntry{Prefix: "10.2.1.5/32", Identity: num, Node: "n1", TunnelAddress: "192.168.2.1", Namespace: "demo",
			Workload: "echo", NamedPorts: []*keyspacev1.NamedPort{{Name: "http", Port: 8080, Protocol: tcp}}, UpdatedAt: 1}},
		{"record-vtep", "vteps/10.2.1.0%2F24", &keyspacev1.VTEP{Prefix: "10.2.1.0/24", TunnelAddress: "192.168.2.1", Node: "n1", UpdatedAt: 1}},
		{"record-vtep-external", "vteps/10.2.9.0%2F24", &keyspacev1.VTEP{Prefix: "10.2.9.0/24", TunnelAddress: "192.168.2.9", Mac: "02:00:00:00:00:07", Vni: 777, UpdatedAt: 1}},
		{"record-service", "services/demo/echo", &keyspacev1.Service{Namespace: "demo", Name: "echo", Id: num,
			Ports:       []*keyspacev1.ServicePort{{Name: "http", Protocol: tcp, Port: 80, Target: "8080"}},
			Annotations: map[string]string{"hawser.io/global": "true"}, Global: true, Shared: true, Type: "ClusterIP", Selector: map[string]string{"app": "echo"},
			Vips: []string{"172.18.0.5"}, SessionAffinitySeconds: 10, Labels: map[string]string{"app": "echo"}, Headless: true, UpdatedAt: 1}},
		{"record-serviceid", "serviceids/131079", &keyspacev1.ServiceID{Number: num, Namespace: "demo", Name: "echo", Vips: []string{"172.18.0.5"}, UpdatedAt: 1}},
		{"record-health", "health/n1", &keyspacev1.NodeHealth{Node: "n1", Cluster: "west", State: keyspacev1.NodeHealth_STATE_AGENT_DOWN, Since: 2,
			Process: "down", Path: "up", Witnesses: []string{"n2", "n3"}, UpdatedAt: 1}},
		{"record-slice", "slices/demo/echo/n1", &keyspacev1.BackendSlice{Namespace: "demo", Service: "echo", Name: "n1", Backends: []*keyspacev1.Backend{{
			Ip: "10.2.1.5", Ports: []*keyspacev1.BackendPort{{Name: "http", Protocol: tcp, Port: 8080}}, Node: "n1", Zone: "z",
			State: keyspacev1.Backend_STATE_TERMINATING, Weight: 50, Workload: "demo/echo"}}, UpdatedAt: 1}},
	}
}

// goldenChanges is a packed batch with a put and a deletion.
func goldenChanges() []byte {
	c, err := newCodec()
	if err != nil {
		panic(err)
	}
	defer c.close()
	b, err := c.pack([]*federationv1.Change{
		{Key: "laterkind/x", Value: []byte("kept"), ModRevision: 1200}, {Key: "ips/10.2.1.9%2F32", Deleted: true, ModRevision: 1234}})
	if err != nil {
		panic(err)
	}
	return b
}

// unknown is a field of a later version.
func unknown() []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, 1999, protowire.BytesType), []byte("later"))
}

func TestWriteGoldens(t *testing.T) {
	version := os.Getenv("HAWSER_GOLDEN")
	if version == "" {
		t.Skip("written once for each released version, with HAWSER_GOLDEN=v<major>.<minor>")
	}
	dir := filepath.Join(goldenDir, version)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, g := range goldens() {
		raw := encode(g.msg)
		text, err := protojson.MarshalOptions{Multiline: true, UseProtoNames: true}.Marshal(g.msg)
		if err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{g.file + ".pb": raw, g.file + ".json": append(text, '\n')} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestGoldens: what every released version sent is understood as it was meant,
// and nothing of it is lost when it is written again.
func TestGoldens(t *testing.T) {
	versions, err := os.ReadDir(goldenDir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, v := range versions {
		names = append(names, v.Name())
		for _, g := range goldens() {
			checkGolden(t, filepath.Join(goldenDir, v.Name()), g)
		}
	}
	if !strings.Contains(strings.Join(names, " "), thisGolden) {
		t.Errorf("no goldens of this version, %s: %v", thisGolden, names)
	}
	// All that is public has one.
	kinds := map[kvstore.Kind]bool{}
	for _, g := range goldens() {
		if k, err := kvstore.ParseKey(kvstore.Prefix(kvstore.State, "west") + g.key); err == nil {
			kinds[k.Kind] = true
		}
	}
	for _, k := range kvstore.PublicKinds {
		if _, has := kvstore.NewRecord(kvstore.NewKey(kvstore.State, "west", k)); has && !kinds[k] {
			t.Errorf("no golden of kind %s", k)
		}
	}
}

func checkGolden(t *testing.T, dir string, g golden) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, g.file+".pb"))
	if os.IsNotExist(err) && dir != filepath.Join(goldenDir, thisGolden) {
		return // a later kind
	}
	text, err2 := os.ReadFile(filepath.Join(dir, g.file+".json"))
	if err != nil || err2 != nil {
		t.Errorf("%v %v", err, err2)
		return
	}
	want, got := g.msg.ProtoReflect().New().Interface(), g.msg.ProtoReflect().New().Interface()
	if err := protojson.Unmarshal(text, want); err != nil {
		t.Errorf("%s: %v", g.file, err)
	}
	if err := proto.Unmarshal(raw, got); err != nil || !proto.Equal(got, want) || len(got.ProtoReflect().GetUnknown()) > 0 {
		t.Errorf("%s/%s: %v: read as\n%v\nnot as\n%v", dir, g.file, err, got, want)
	}
	if !bytes.Equal(encode(got), raw) {
		t.Errorf("%s/%s: written again it is another: %x, was %x", dir, g.file, encode(got), raw)
	}
	later := append(bytes.Clone(raw), unknown()...)
	if err := proto.Unmarshal(later, got); err != nil || !bytes.Equal(encode(got), later) {
		t.Errorf("%s/%s: a later version's field is lost: %v", dir, g.file, err)
	}
	if g.key == "" {
		return
	}
	for what, value := range map[string][]byte{"as it was": raw, "of a later version": later} {
		j := judge("west", goldenGuard(t), &federationv1.Change{Key: g.key, Value: value})
		if j.err != nil || !bytes.Equal(j.value, value) {
			t.Errorf("%s/%s, %s: the importer refuses or changes it: %v", dir, g.file, what, j.err)
		}
	}
}

func goldenGuard(t *testing.T) *peering.Guard {
	t.Helper()
	c := describe("west", 2, "")
	grant, err := peering.GrantFor(c)
	if err != nil {
		t.Fatal(err)
	}
	g, err := peering.NewGuard(&keyspacev1.Peer{Name: "west", ClusterId: 2, Grant: grant}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestGoldenBatch unpacks what a released version packed.
func TestGoldenBatch(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(goldenDir, thisGolden, "frame-batch.pb"))
	if err != nil {
		t.Fatal(err)
	}
	f := &federationv1.Frame{}
	if err := proto.Unmarshal(raw, f); err != nil {
		t.Fatal(err)
	}
	c, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	changes, err := c.unpack(f.GetBatch().GetChangesZstd())
	if err != nil || len(changes) != 2 || changes[0].GetKey() != "laterkind/x" || string(changes[0].GetValue()) != "kept" || !changes[1].GetDeleted() || changes[1].GetModRevision() != 1234 {
		t.Errorf("unpacked: %v, %v", changes, err)
	}
}

// TestUnknownFrameIsPassedOver: a frame that a later version sends means nothing
// here and breaks nothing.
func TestUnknownFrameIsPassedOver(t *testing.T) {
	hub := newCluster(t, 1, small(8))
	p := hub.admit(2, 8)
	p.connect()
	f := &federationv1.Frame{}
	if err := proto.Unmarshal(unknown(), f); err != nil {
		t.Fatal(err)
	}
	p.send(f)
	p.first()
	if s := p.status(); s.GetState() != stateConnected || len(s.GetRefused()) != 0 {
		t.Errorf("status: %v", s)
	}
}
