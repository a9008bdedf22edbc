// SPDX-License-Identifier: Apache-2.0

package kvstore

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
)

const east = "east"

func key(k Kind, names ...string) Key { return NewKey(State, east, k, names...) }

func local(k Kind, names ...string) Key { return NewKey(Local, east, k, names...) }

func private(k Kind, names ...string) Key { return NewKey(Private, east, k, names...) }

// eastIsOne gives east the cluster id 1: numbers 65536-131071.
func eastIsOne(t testing.TB) Limits {
	t.Helper()
	space, err := identity.NewSpace(8)
	if err != nil {
		t.Fatal(err)
	}
	return Limits{Space: space, ClusterID: func(c string) uint32 {
		if c == east {
			return 1
		}
		return 0
	}}
}

type record struct {
	key Key
	msg proto.Message
}

var hash = strings.Repeat("0a", 32)

func truths() []record {
	return []record{
		{key(KindCluster), &keyspacev1.Cluster{Name: east, Id: 1, PodCidrs: []string{"10.1.0.0/16"}, KubeApiservers: []string{"192.0.2.1/32", "fd00::8/125"}, Mesh: &keyspacev1.MeshParameters{ClusterBits: 8}}},
		{key(KindNode, "n1"), &keyspacev1.Node{Name: "n1", Cluster: east, TunnelAddress: "192.0.2.1", PodCidrs: []string{"10.1.0.0/24"}}},
		{key(KindIdentity, "65537"), &keyspacev1.Identity{Number: 65537, Labels: []string{"k8s:app=web", "mesh:cluster=east"}}},
		{key(KindIdentityLabels, hash), &keyspacev1.IdentityRef{Number: 65537}},
		{key(KindIP, "10.1.0.5/32"), &keyspacev1.IPEntry{Prefix: "10.1.0.5/32", Identity: 65537, Node: "n1", TunnelAddress: "192.0.2.1"}},
		{key(KindIP, "fd00::5/128"), &keyspacev1.IPEntry{Prefix: "fd00::5/128", Identity: uint32(identity.Health), Node: "n1"}},
		{key(KindVTEP, "10.1.0.0/24"), &keyspacev1.VTEP{Prefix: "10.1.0.0/24", TunnelAddress: "192.0.2.1", Node: "n1"}},
		{key(KindService, "demo", "echo"), &keyspacev1.Service{Namespace: "demo", Name: "echo", Id: 65540, Vips: []string{"10.96.0.1"}}},
		{local(KindService, "demo", "echo"), &keyspacev1.Service{Namespace: "demo", Name: "echo"}},
		{key(KindServiceID, "65540"), &keyspacev1.ServiceID{Number: 65540, Namespace: "demo", Name: "echo"}},
		{key(KindSlice, "demo", "echo", "n1"), &keyspacev1.BackendSlice{Namespace: "demo", Service: "echo", Name: "n1", Backends: []*keyspacev1.Backend{{Ip: "10.1.0.5", Ports: []*keyspacev1.BackendPort{{Port: 80}}}}}},
		{local(KindPolicy, "_", "p"), &keyspacev1.PolicyObject{Kind: "RuleArray", Namespace: "_", Name: "p"}},
		{local(KindRef, "65537", "n1"), &emptypb.Empty{}},
		{local(KindRetired, "65537"), &keyspacev1.IdentityRef{Number: 65537}},
		{local(KindPresence, "n1"), &keyspacev1.Presence{Node: "n1"}},
		{local(KindNodeConfig, "n1"), &keyspacev1.NodeConfig{Node: "n1", PodCidrs: []string{"10.1.2.0/24"}, Drained: true}},
		{local(KindStatus, "n1"), &keyspacev1.NodeStatus{Node: "n1"}},
		{local(KindPeerView, "west"), &keyspacev1.PeerView{Peer: "west"}},
		{local(KindSynced, "west", string(KindIdentity)), &keyspacev1.Synced{Incarnation: "i"}},
		{private(KindPeerView, "west"), &keyspacev1.Peer{Name: "west"}},
		{private(KindProgress, "west"), &keyspacev1.Position{Incarnation: "i", Revision: 3}},
		{private(KindToken, "t"), &keyspacev1.Token{Id: "t"}},
		{private(KindVIP, "10.96.0.1"), &keyspacev1.VIPOwner{Ip: "10.96.0.1"}},
		{private(KindGossipKeys), &keyspacev1.GossipKeys{Keys: []*keyspacev1.GossipKey{{Secret: []byte("k")}}}},
		{NewKey(Local, "east", KindGossip), &keyspacev1.Gossip{Keys: [][]byte{[]byte("k")}}},
		{NewKey(State, "east", KindHealth, "n1"), &keyspacev1.NodeHealth{Cluster: "east", Node: "n1", State: keyspacev1.NodeHealth_STATE_DEAD}},
		{private(KindEnrolment, "n1"), &keyspacev1.Enrolment{Node: "n1"}},
		{private(KindIncarnation), wrapperspb.String("i")},
		{private(KindElection, "import", "west"), wrapperspb.String("")},
		{private(KindPodCIDR, "10.1.0.0/24"), wrapperspb.String("n1")},
	}
}

func TestTruthsAreBelieved(t *testing.T) {
	l := eastIsOne(t)
	for _, r := range truths() {
		b, err := Encode(r.key, r.msg)
		if err != nil {
			t.Errorf("encode: %v", err)
			continue
		}
		got, err := l.Decode(r.key, b)
		if err != nil || !proto.Equal(got, r.msg) {
			t.Errorf("decode %s: %v, %v", r.key, got, err)
		}
	}
}

func TestLiesAreRefused(t *testing.T) {
	l := eastIsOne(t)
	ident := func(n uint32, ls ...string) *keyspacev1.Identity {
		return &keyspacev1.Identity{Number: n, Labels: ls}
	}
	ip := func(p string, id uint32, tunnel string) *keyspacev1.IPEntry {
		return &keyspacev1.IPEntry{Prefix: p, Identity: id, Node: "n1", TunnelAddress: tunnel}
	}
	mesh := &keyspacev1.MeshParameters{ClusterBits: 8}
	for name, c := range map[string]struct {
		record
		reason string
	}{
		"cluster of another name":     {record{key(KindCluster), &keyspacev1.Cluster{Name: "west", Id: 1, Mesh: mesh}}, ReasonMismatch},
		"cluster id beyond the bits":  {record{key(KindCluster), &keyspacev1.Cluster{Name: east, Id: 256, Mesh: mesh}}, ReasonRange},
		"cluster id of another":       {record{key(KindCluster), &keyspacev1.Cluster{Name: east, Id: 2, Mesh: mesh}}, ReasonMismatch},
		"cluster with too many api":   {record{key(KindCluster), &keyspacev1.Cluster{Name: east, Id: 1, Mesh: mesh, KubeApiservers: slices.Repeat([]string{"192.0.2.1/32"}, 65)}}, ReasonSize},
		"cluster with api everywhere": {record{key(KindCluster), &keyspacev1.Cluster{Name: east, Id: 1, Mesh: mesh, KubeApiservers: []string{"0.0.0.0/0"}}}, ReasonAddress},
		"cluster with default route":  {record{key(KindCluster), &keyspacev1.Cluster{Name: east, Id: 1, Mesh: mesh, PodCidrs: []string{"0.0.0.0/0"}}}, ReasonAddress},
		"node of another name":        {record{key(KindNode, "n1"), &keyspacev1.Node{Name: "n2", Cluster: east}}, ReasonMismatch},
		"node of another cluster":     {record{key(KindNode, "n1"), &keyspacev1.Node{Name: "n1", Cluster: "west"}}, ReasonMismatch},
		"node with a multicast vtep":  {record{key(KindNode, "n1"), &keyspacev1.Node{Name: "n1", Cluster: east, TunnelAddress: "224.0.0.1"}}, ReasonAddress},
		"node with half a key":        {record{key(KindNode, "n1"), &keyspacev1.Node{Name: "n1", Cluster: east, WireguardPublicKey: []byte{1}}}, ReasonMismatch},
		"identity of another number":  {record{key(KindIdentity, "65538"), ident(65537, "mesh:cluster=east")}, ReasonMismatch},
		"identity key with zeros":     {record{key(KindIdentity, "065537"), ident(65537, "mesh:cluster=east")}, ReasonMismatch},
		"identity of another range":   {record{key(KindIdentity, "131073"), ident(131073, "mesh:cluster=east")}, ReasonRange},
		"reserved number":             {record{key(KindIdentity, "2"), ident(2, "mesh:cluster=east")}, ReasonRange},
		"node-local number":           {record{key(KindIdentity, "16777217"), ident(1<<24+1, "mesh:cluster=east")}, ReasonRange},
		"identity of another cluster": {record{key(KindIdentity, "65537"), ident(65537, "mesh:cluster=west")}, ReasonLabels},
		"identity of no cluster":      {record{key(KindIdentity, "65537"), ident(65537, "k8s:app=web")}, ReasonLabels},
		"identity that is reserved":   {record{key(KindIdentity, "65537"), ident(65537, "mesh:cluster=east", "reserved:host")}, ReasonLabels},
		"identity that is a cidr":     {record{key(KindIdentity, "65537"), ident(65537, "cidr:10.0.0.0/8", "mesh:cluster=east")}, ReasonLabels},
		"identity with an alias":      {record{key(KindIdentity, "65537"), ident(65537, "k8s:io.cilium.k8s.policy.cluster=west", "mesh:cluster=east")}, ReasonLabels},
		"identity with another alias": {record{key(KindIdentity, "65537"), ident(65537, "k8s:io.cilium.k8s.namespace.labels.team=a", "mesh:cluster=east")}, ReasonLabels},
		"identity without a source":   {record{key(KindIdentity, "65537"), ident(65537, "app=web", "mesh:cluster=east")}, ReasonLabels},
		"identity unsorted":           {record{key(KindIdentity, "65537"), ident(65537, "mesh:cluster=east", "k8s:app=web")}, ReasonLabels},
		"identity with a ;":           {record{key(KindIdentity, "65537"), ident(65537, "k8s:a=;b", "mesh:cluster=east")}, ReasonLabels},
		"labels key not a hash":       {record{key(KindIdentityLabels, "abc"), &keyspacev1.IdentityRef{Number: 65537}}, ReasonKey},
		"labels key out of range":     {record{key(KindIdentityLabels, hash), &keyspacev1.IdentityRef{Number: 200000}}, ReasonRange},
		"ip of another address":       {record{key(KindIP, "10.1.0.5/32"), ip("10.1.0.6/32", 65537, "")}, ReasonMismatch},
		"ip not canonical":            {record{key(KindIP, "10.1.0.5/24"), ip("10.1.0.5/24", 65537, "")}, ReasonAddress},
		"ip that is no prefix":        {record{key(KindIP, "10.1.0.5"), ip("10.1.0.5", 65537, "")}, ReasonAddress},
		"ip that is everything":       {record{key(KindIP, "::/0"), ip("::/0", 65537, "")}, ReasonAddress},
		"ip mapped":                   {record{key(KindIP, "::ffff:10.1.0.5/128"), ip("::ffff:10.1.0.5/128", 65537, "")}, ReasonAddress},
		"ip that is world":            {record{key(KindIP, "10.1.0.5/32"), ip("10.1.0.5/32", 2, "")}, ReasonRange},
		"ip that is host":             {record{key(KindIP, "10.1.0.5/32"), ip("10.1.0.5/32", 1, "")}, ReasonRange},
		"ip of another's identity":    {record{key(KindIP, "10.1.0.5/32"), ip("10.1.0.5/32", 131073, "")}, ReasonRange},
		"ip with loopback tunnel":     {record{key(KindIP, "10.1.0.5/32"), ip("10.1.0.5/32", 65537, "127.0.0.1")}, ReasonAddress},
		"vtep without endpoint":       {record{key(KindVTEP, "10.1.0.0/24"), &keyspacev1.VTEP{Prefix: "10.1.0.0/24"}}, ReasonAddress},
		"service of another name":     {record{key(KindService, "demo", "echo"), &keyspacev1.Service{Namespace: "demo", Name: "eco"}}, ReasonMismatch},
		"service id out of range":     {record{key(KindService, "demo", "echo"), &keyspacev1.Service{Namespace: "demo", Name: "echo", Id: 131073}}, ReasonRange},
		"service id of another":       {record{key(KindServiceID, "65540"), &keyspacev1.ServiceID{Number: 65541, Namespace: "demo", Name: "echo"}}, ReasonMismatch},
		"health of another node":      {record{key(KindHealth, "n1"), &keyspacev1.NodeHealth{Cluster: "east", Node: "n2"}}, ReasonMismatch},
		"health in another's name":    {record{key(KindHealth, "n1"), &keyspacev1.NodeHealth{Cluster: "west", Node: "n1"}}, ReasonMismatch},
		"slice of another service":    {record{key(KindSlice, "demo", "echo", "n1"), &keyspacev1.BackendSlice{Namespace: "demo", Service: "x", Name: "n1"}}, ReasonMismatch},
		"slice with port 0":           {record{key(KindSlice, "demo", "echo", "n1"), &keyspacev1.BackendSlice{Namespace: "demo", Service: "echo", Name: "n1", Backends: []*keyspacev1.Backend{{Ip: "10.1.0.5", Ports: []*keyspacev1.BackendPort{{}}}}}}, ReasonRange},
		"slice too long":              {record{key(KindSlice, "demo", "echo", "n1"), &keyspacev1.BackendSlice{Namespace: "demo", Service: "echo", Name: "n1", Backends: make([]*keyspacev1.Backend, 101)}}, ReasonSize},
		"policy below state":          {record{key(KindPolicy, "_", "p"), &keyspacev1.PolicyObject{Kind: "x", Namespace: "_", Name: "p"}}, ReasonKey},
		"node below local":            {record{local(KindNode, "n1"), &keyspacev1.Node{Name: "n1", Cluster: east}}, ReasonKey},
		"presence of another":         {record{local(KindPresence, "n1"), &keyspacev1.Presence{Node: "n2"}}, ReasonMismatch},
		"incarnation of nothing":      {record{private(KindIncarnation), wrapperspb.String("")}, ReasonDecode},
	} {
		b, err := proto.Marshal(c.msg)
		if s, ok := c.msg.(*wrapperspb.StringValue); ok {
			b = []byte(s.Value)
		}
		if err != nil {
			t.Fatal(err)
		}
		m, err := l.Decode(c.key, b)
		var bad *BadRecord
		if !errors.As(err, &bad) || bad.Reason != c.reason {
			t.Errorf("%s: got %v, %v; want reason %s", name, m, err, c.reason)
		}
	}
}

func TestDecodeRefusesBytes(t *testing.T) {
	var b *BadRecord
	if _, err := Decode(key(KindNode, "n1"), []byte{0xff, 0xff}); !errors.As(err, &b) || b.Reason != ReasonDecode {
		t.Errorf("garbage: %v", err)
	}
	if _, err := Decode(key(KindNode, "n1"), make([]byte, MaxRecord+1)); !errors.As(err, &b) || b.Reason != ReasonSize {
		t.Errorf("a value over 1 MiB: %v", err)
	}
	if _, err := Decode(key("future", "x"), nil); !errors.Is(err, ErrUnknownKind) {
		t.Errorf("unknown kind: %v", err)
	}
	if _, err := Encode(key(KindNode, "n1"), &keyspacev1.VTEP{}); err == nil {
		t.Error("encoded a VTEP as a node")
	}
}

func TestUnknownFieldsSurvive(t *testing.T) {
	k := key(KindVTEP, "10.1.0.0/24")
	b, err := Encode(k, &keyspacev1.VTEP{Prefix: "10.1.0.0/24", TunnelAddress: "192.0.2.1"})
	if err != nil {
		t.Fatal(err)
	}
	future := protowire.AppendString(protowire.AppendTag(nil, 99, protowire.BytesType), "new")
	m, err := Decode(k, append(b, future...))
	if err != nil {
		t.Fatal(err)
	}
	m.(*keyspacev1.VTEP).Node = "n1"
	if b, err = Encode(k, m); err != nil || !bytes.Contains(b, future) {
		t.Errorf("unknown field lost in a rewrite: %x, %v", b, err)
	}
}

func TestSameRecordIgnoresTheTime(t *testing.T) {
	k := key(KindVTEP, "10.1.0.0/24")
	enc := func(tunnel string, at int64) []byte {
		b, err := Encode(k, &keyspacev1.VTEP{Prefix: "10.1.0.0/24", TunnelAddress: tunnel, UpdatedAt: at})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if !SameRecord(k, enc("192.0.2.1", 1), enc("192.0.2.1", 2)) {
		t.Error("records that differ in updated_at only are not the same")
	}
	if SameRecord(k, enc("192.0.2.1", 1), enc("192.0.2.2", 1)) {
		t.Error("records with different tunnels are the same")
	}
}

func FuzzDecode(f *testing.F) {
	for _, r := range truths() {
		b, err := Encode(r.key, r.msg)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(r.key.String(), b)
	}
	l := eastIsOne(f)
	f.Fuzz(func(t *testing.T, s string, value []byte) {
		k, err := ParseKey(s)
		if err != nil {
			return
		}
		m, err := l.Decode(k, value)
		if err != nil {
			return
		}
		b, err := Encode(k, m)
		if err != nil {
			t.Fatalf("%s: believed, but cannot be written: %v", k, err)
		}
		if again, err := l.Decode(k, b); err != nil || !proto.Equal(m, again) {
			t.Fatalf("%s: not the same after a rewrite: %v, %v", k, again, err)
		}
	})
}

// With more cluster bits the ranges are others, and cluster ids above 255 are
// possible; the numbers of services do not depend on it.
func TestLimitsByClusterBits(t *testing.T) {
	for bits, id := range map[uint32]uint32{8: 255, 9: 511, 10: 1023} {
		space, err := identity.NewSpace(bits)
		if err != nil {
			t.Fatal(err)
		}
		l := Limits{Space: space, ClusterID: func(string) uint32 { return id }}
		first, last := space.Range(id)
		ident := func(n identity.Number) record {
			return record{key(KindIdentity, NumberName(uint32(n))), &keyspacev1.Identity{Number: uint32(n), Labels: []string{"mesh:cluster=east"}}}
		}
		svc := func(n uint32) record {
			return record{key(KindServiceID, NumberName(n)), &keyspacev1.ServiceID{Number: n, Namespace: "demo", Name: "echo"}}
		}
		for _, c := range []struct {
			record
			ok bool
		}{
			{ident(first + 1), true},
			{ident(last), true},
			{ident(first - 1), false},
			{ident(last + 1), false},
			{record{key(KindService, "demo", "echo"), &keyspacev1.Service{Namespace: "demo", Name: "echo", Id: id<<ServiceIDBits + 1}}, true},
			{record{key(KindService, "demo", "echo"), &keyspacev1.Service{Namespace: "demo", Name: "echo", Id: (id-1)<<ServiceIDBits + 1}}, false},
			{svc(id<<ServiceIDBits + 1), true},
			{svc(id<<ServiceIDBits + 65535), true},
			{svc(id << ServiceIDBits), false},
			{svc((id-1)<<ServiceIDBits + 1), false},
			{svc(1), false},
		} {
			var bad *BadRecord
			if err := l.Check(c.key, c.msg); (err == nil) != c.ok || !c.ok && (!errors.As(err, &bad) || bad.Reason != ReasonRange) {
				t.Errorf("%d bits, cluster %d: %s: %v, want ok %v", bits, id, c.key, err, c.ok)
			}
		}
		cluster := &keyspacev1.Cluster{Name: east, Id: id, Mesh: &keyspacev1.MeshParameters{ClusterBits: bits}}
		if err := l.Check(key(KindCluster), cluster); err != nil {
			t.Errorf("%d bits: the highest cluster id is refused: %v", bits, err)
		}
		cluster.Id++
		if err := l.Check(key(KindCluster), cluster); err == nil {
			t.Errorf("%d bits: cluster id %d is accepted", bits, cluster.GetId())
		}
	}
}
