// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

// FuzzHello is whatever a peer begins a stream with: what is agreed on is what
// both can, with the peer that joined.
func FuzzHello(f *testing.F) {
	peer := &keyspacev1.Peer{Name: "west", ClusterId: 2}
	good := &federationv1.Frame{Body: &federationv1.Frame_Hello{Hello: &federationv1.Hello{
		Cluster: "west", ClusterId: 2, Version: "v0.1.0", Incarnation: "i", ProtocolMin: protocolMin, ProtocolMax: protocolMax,
		Capabilities: append(capabilities(), "unheard-of"),
	}}}
	for _, m := range []proto.Message{good, &federationv1.Frame{}, &federationv1.Frame{Body: &federationv1.Frame_Hello{}}} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		var m federationv1.Frame
		if proto.Unmarshal(frame, &m) != nil {
			return
		}
		h := m.GetHello()
		a, err := negotiate(peer, "v0.1.0", h)
		if err != nil {
			return
		}
		if h.GetCluster() != "west" || h.GetClusterId() != 2 || a.incarnation == "" || a.protocol < protocolMin || a.protocol > protocolMax {
			t.Fatalf("agreed on %+v with %v", a, h)
		}
		for _, c := range a.capabilities {
			if !slices.Contains(capabilities(), c) {
				t.Fatalf("agreed on %q, which we do not know", c)
			}
		}
	})
}

// FuzzUnpack is a compressed batch: what comes out of it is bounded, whatever it
// claims.
func FuzzUnpack(f *testing.F) {
	c, err := newCodec()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(c.close)
	small, err := c.pack([]*federationv1.Change{{Key: "ips/x", Value: []byte("v")}})
	if err != nil {
		f.Fatal(err)
	}
	bomb := c.enc.EncodeAll(make([]byte, maxBatchBytes+1), nil)
	if _, err := c.unpack(bomb); err == nil {
		f.Fatalf("%d bytes became more than %d", len(bomb), maxBatchBytes)
	}
	f.Add(small)
	f.Add(bomb)
	f.Add(append(slices.Clone(small), small...)) // two frames in a row
	f.Fuzz(func(t *testing.T, packed []byte) {
		changes, err := c.unpack(packed)
		if err != nil {
			return
		}
		size := 0
		for _, ch := range changes {
			size += len(ch.GetKey()) + len(ch.GetValue())
		}
		if size > maxBatchBytes || len(changes) > maxBatchChanges {
			t.Fatalf("%d bytes became %d in %d changes", len(packed), size, len(changes))
		}
	})
}
