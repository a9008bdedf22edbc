// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"

	"github.com/hawser-mesh/hawser/internal/testutil/ports"
)

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func secret() []byte {
	b := make([]byte, GossipKeySize)
	_, _ = rand.Read(b)
	return b
}

type member struct {
	*Gossip
	at   netip.AddrPort
	stop func()
}

func join(t *testing.T, cluster, name string, key []byte, seeds ...netip.AddrPort) member {
	t.Helper()
	m := member{at: ports.Free(t)}
	m.Gossip = NewGossip(GossipConfig{
		Cluster: cluster, Name: name, Listen: m.at, Log: slog.New(slog.DiscardHandler),
		Seeds: func() []netip.AddrPort { return seeds },
	})
	if err := m.SetKeys([][]byte{key}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = m.Run(ctx) }()
	m.stop = func() { cancel(); <-done }
	t.Cleanup(m.stop)
	return m
}

// Members find each other, one that goes is noticed; a wrong key, or the right
// one in the name of another cluster, is refused and counted.
func TestGossip(t *testing.T) {
	key := secret()
	a := join(t, "east", "a", key)
	if a.Process("b") != Unknown {
		t.Error("known before it was met")
	}
	b := join(t, "east", "b", key, a.at)
	c := join(t, "east", "c", key, a.at)
	eventually(t, "all met", func() bool {
		return a.Process("b") == Up && a.Process("c") == Up && b.Process("c") == Up && c.Process("b") == Up
	})
	for what, stranger := range map[string]member{
		"a wrong key":     join(t, "east", "x", secret(), a.at),
		"another cluster": join(t, "west", "y", key, a.at),
	} {
		before := a.Refused()
		eventually(t, what+" refused", func() bool { return a.Refused() > before })
		if m := a.Members(); m["x"] != Unknown || m["y"] != Unknown || stranger.Process("a") == Up {
			t.Errorf("%s: members %v, it met %v", what, m, stranger.Members())
		}
		stranger.stop()
	}
	// On a busy machine a member may be missed for a moment, and come back.
	eventually(t, "strangers did no harm", func() bool { return a.Process("b") == Up && a.Process("c") == Up })
	c.stop()
	eventually(t, "c is missed", func() bool { return a.Process("c") == Down && b.Process("c") == Down })
	eventually(t, "b is not", func() bool { return a.Process("b") == Up && b.Process("a") == Up })
}

// Keys change step by step while members understand each other all the time.
func TestGossipKeyChange(t *testing.T) {
	one, two := secret(), secret()
	a := join(t, "east", "a", one)
	b := join(t, "east", "b", one, a.at)
	met := func() bool { return a.Process("b") == Up && b.Process("a") == Up }
	eventually(t, "met", met)
	for _, keys := range [][][]byte{{one, two}, {two, one}, {two}} {
		for _, m := range []member{a, b} {
			if err := m.SetKeys(keys); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * probeEvery) // they must talk under these keys
		eventually(t, "they still understand each other", met)
		if n := a.Refused() + b.Refused(); n != 0 {
			t.Fatalf("with %d keys: refused %d", len(keys), n)
		}
	}
	late := join(t, "east", "late", one, a.at)
	eventually(t, "the old key is refused", func() bool { return a.Refused() > 0 })
	if a.Process("late") != Unknown || late.Process("a") != Unknown {
		t.Error("the old key still opens")
	}
	if err := a.SetKeys([][]byte{{1, 2, 3}}); err == nil {
		t.Error("a key of three bytes is taken")
	}
	if err := a.SetKeys(nil); err == nil {
		t.Error("no keys are taken")
	}
}

// A port that is taken is told, and no reason to end.
func TestGossipPortTaken(t *testing.T) {
	at := ports.Free(t)
	lis, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	g := NewGossip(GossipConfig{Cluster: "east", Name: "a", Listen: at, Seeds: func() []netip.AddrPort { return nil }, Log: slog.New(slog.DiscardHandler)})
	if err := g.SetKeys([][]byte{secret()}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	eventually(t, "told", func() bool { return g.Err() != nil })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNextKeys(t *testing.T) {
	var n byte
	random := func(b []byte) { n++; copy(b, bytes.Repeat([]byte{n}, len(b))) }
	now, lifetime := time.Unix(1e6, 0), 4*time.Hour
	keys, changed := NextKeys(now, lifetime, nil, random)
	if !changed || len(keys.GetKeys()) != 1 || len(keys.GetKeys()[0].GetSecret()) != GossipKeySize {
		t.Fatalf("first: %v", keys)
	}
	show := func() (s string) {
		for _, k := range SharedKeys(keys).GetKeys() {
			s += fmt.Sprint(k[0])
		}
		return s
	}
	seen := "1"
	for range 6 * 60 * 2 {
		now = now.Add(30 * time.Second)
		next, changed := NextKeys(now, lifetime, keys, random)
		if changed == proto.Equal(next, keys) {
			t.Fatal("it lies")
		}
		if keys = next; changed {
			seen += " " + show()
		}
	}
	// A new one is known before it is used, the old one good until all use it.
	if seen != "1 12 21 2" {
		t.Errorf("keys %s", seen)
	}
	if _, changed := NextKeys(now.Add(1e6*time.Hour), 0, keys, random); changed {
		t.Error("with lifetime 0 it changed")
	}
	if k, _ := NextKeys(now, lifetime, &keyspacev1.GossipKeys{}, random); len(k.GetKeys()) != 1 {
		t.Error("no key from an empty record")
	}
}

// Keys that somebody knows who is no member any more are replaced within half a
// minute, whatever their life is, and members understand each other meanwhile.
func TestKeysThatAreKnownElsewhereAreReplaced(t *testing.T) {
	for _, lifetime := range []time.Duration{0, 4 * time.Hour, 30 * 24 * time.Hour} {
		var n byte
		random := func(b []byte) { n++; copy(b, bytes.Repeat([]byte{n}, len(b))) }
		now := time.Unix(1e6, 0)
		keys, _ := NextKeys(now, lifetime, nil, random)
		steps := func(seconds int) (seen string) {
			for range seconds {
				now = now.Add(time.Second)
				next, changed := NextKeys(now, lifetime, keys, random)
				if keys = next; changed {
					seen += " "
					for _, k := range SharedKeys(keys).GetKeys() {
						seen += fmt.Sprint(k[0])
					}
				}
			}
			return seen
		}
		if seen := steps(60); seen != "" {
			t.Errorf("lifetime %s: without a cause%s", lifetime, seen)
		}
		keys.ReplaceBefore = now.UnixNano() + 1
		if seen := steps(5); seen != " 12" { // the second one is known and not used yet
			t.Errorf("lifetime %s: at once%s", lifetime, seen)
		}
		keys.ReplaceBefore = now.UnixNano() + 1 // another node is forgotten, which knows it too
		if seen := steps(35); seen != " 13 31 3" {
			t.Errorf("lifetime %s: within half a minute%s", lifetime, seen)
		}
		if seen := steps(60); seen != "" {
			t.Errorf("lifetime %s: it goes on%s", lifetime, seen)
		}
	}
}

// responder answers probes as the programs do.
func responder(t *testing.T, port uint16, addr string, mute *atomic.Bool) {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if mute.Load() {
				continue
			}
			b := buf[:n]
			src, dst := [4]byte(b[ipAt+12:ipAt+16]), [4]byte(b[ipAt+16:ipAt+20])
			copy(b[ipAt+12:], dst[:])
			copy(b[ipAt+16:], src[:])
			s, d := binary.BigEndian.Uint16(b[udpAt:]), binary.BigEndian.Uint16(b[udpAt+2:])
			binary.BigEndian.PutUint16(b[udpAt:], d)
			binary.BigEndian.PutUint16(b[udpAt+2:], s)
			_, _ = conn.WriteToUDPAddrPort(b, from)
		}
	}()
}

func TestProbes(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	port := conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	var mute atomic.Bool
	responder(t, port, "127.0.0.2", &mute)
	changes := make(chan PathChange, 100)
	p := NewProbes(ProbesConfig{
		Self: netip.MustParseAddr("127.0.0.1"), Conn: conn, Port: port, Log: slog.New(slog.DiscardHandler),
		Prober: ProberConfig{Hold: 300 * time.Millisecond}, Sizer: SizerConfig{Full: 1400},
		Changed: func(cs []PathChange) {
			for _, c := range cs {
				changes <- c
			}
		},
	})
	there := Target{NodeID{"west", "w1"}, netip.MustParseAddr("127.0.0.2")}
	p.SetTargets([]Target{there})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	next := func(want Path) {
		t.Helper()
		select {
		case c := <-changes:
			if c.Path != want || c.NodeID != there.NodeID {
				t.Fatalf("%s is %s, want %s", c.NodeID, c.Path, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("the path never was %s", want)
		}
	}
	next(PathUp)
	eventually(t, "large packets get through", func() bool { return p.Paths()[0].MTU == 1400 })
	mute.Store(true)
	next(PathDown)
	// Answers that nobody asked for do not bring it back.
	forger, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 3)})
	if err != nil {
		t.Fatal(err)
	}
	defer forger.Close()
	forged := encodeProbe(there.Addr, netip.MustParseAddr("127.0.0.1"), Nonce{1}, 0)
	binary.BigEndian.PutUint16(forged[udpAt:], echoPort)
	binary.BigEndian.PutUint16(forged[udpAt+2:], askPort)
	for _, b := range [][]byte{forged, forged[:20], nil, bytes.Repeat([]byte{0xFF}, 1400)} {
		if _, err := forger.WriteToUDPAddrPort(b, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "forged answers are counted", func() bool { return p.Refused() == 4 })
	mute.Store(false)
	next(PathReturning)
	// On a busy machine the responder may be late, and the path held anew.
	eventually(t, "the path is up again", func() bool { return p.Paths()[0].Path == PathUp })
	if s := p.Paths(); len(s) != 1 || s[0].RTT == 0 || s[0].Answered == 0 || s[0].Answered >= s[0].Sent {
		t.Errorf("paths %+v", s)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzDecodeAnswer(f *testing.F) {
	f.Add(encodeProbe(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), Nonce{9}, 0))
	f.Add(encodeProbe(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), Nonce{9}, 1500))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, size, ok := decodeAnswer(b, netip.MustParseAddr("192.0.2.1")); ok && (len(b) < probeLen || size != len(b)+outerLen) {
			t.Error("believed")
		}
	})
}
