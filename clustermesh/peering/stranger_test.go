// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"net"
	"testing"
	"time"
)

func TestWhereAStrangerMaySendUs(t *testing.T) {
	from := &net.TCPAddr{IP: net.ParseIP("198.51.100.7"), Port: 40000}
	nodes, own := []string{"192.168.2.0/24", "127.0.0.0/8", "0.0.0.0/0", "fd00:2::/64"}, []string{"192.168.1.1:14243"}
	for endpoint, want := range map[string]bool{
		"192.168.2.1:4243":     true,
		"192.168.2.1:14243":    true, // our own port: perhaps it is everybody's here
		"[fd00:2::1]:4243":     true,
		"198.51.100.7:9999":    true, // it calls from there
		"192.168.2.1:22":       false,
		"192.168.2.1:2379":     false,
		"192.168.3.1:4243":     false,
		"127.0.0.1:4243":       false,
		"10.0.0.1:4243":        false, // a default route is nobody's range
		"west.example:4243":    false,
		"169.254.169.254:4243": false,
		"192.168.2.1":          false,
		"":                     false,
	} {
		if got := mayTry(endpoint, nodes, from, own); got != want {
			t.Errorf("%q: %v, want %v", endpoint, got, want)
		}
	}
}

func TestStrangersDialsAreFew(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := &strangers{now: func() time.Time { return now }}
	spent := 0
	for range 100 {
		if s.spend(1) {
			spent++
		}
	}
	now = now.Add(strangerWindow)
	if spent != strangerDials || !s.spend(1) || s.spend(strangerDials) {
		t.Errorf("%d dials in a window, want %d, and again in the next", spent, strangerDials)
	}
}
