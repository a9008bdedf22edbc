// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"context"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

const askVar = "HAWSER_TEST_ASK_PORTS"

// Ports of one process are no other's, and none that the kernel gives out.
func TestPortsAreOnes(t *testing.T) {
	const many = 200
	mine := map[string]bool{}
	for range many {
		p := Free(t).String()
		if mine[p] {
			t.Fatalf("%s was given twice", p)
		}
		mine[p] = true
	}
	if os.Getenv(askVar) != "" {
		for p := range mine {
			t.Logf("has %s.", p)
		}
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=TestPortsAreOnes", "-test.v")
	cmd.Env = append(os.Environ(), askVar+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "has 127.0.0.1:") != many {
		t.Fatalf("another process: %v\n%s", err, out)
	}
	first, err := kernelsFirst()
	if err != nil {
		t.Fatal(err)
	}
	for p := range mine {
		if strings.Contains(string(out), "has "+p+".") {
			t.Errorf("%s is another process's, too", p)
		}
	}
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if got := l.Addr().(*net.TCPAddr).Port; got < first {
			t.Errorf("the kernel gave out %d", got)
		}
		l.Close()
	}
}

// A port can be listened on at once, also while this process starts others.
func TestPortIsFreeAtOnce(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_ = exec.Command("/bin/true").Run() //nolint:noctx // ends at once
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	for range 1000 {
		l, err := net.Listen("tcp", Free(t).String())
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
}
