// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/internal/nsthread"
	"github.com/hawser-mesh/hawser/lab"
)

// The measuring client and server are this test binary again, with a role in its
// environment: one locked, pinned thread that makes blocking system calls, so
// that no scheduler but the kernel's is measured.
const roleEnv = "HAWSER_PERF_ROLE"

// priority makes the two preempt whatever else runs on the machine.
const priority = 10

// role is what such a process is told.
type role struct {
	Mode   string         // serve, rr, crr, stream, datagrams, connect, inject, change, peers
	Netns  string         // path
	CPU    int            // pinned to
	Addr   netip.AddrPort // to listen on, to connect to
	Millis int            // rr, datagrams: how long
	Count  int            // crr: how many connections
	Bytes  int64          // stream: how many
	Fresh  bool           // connect: a new socket each time
	Stream bool           // connect: TCP

	Cluster *lab.Cluster // inject, change: into whose etcd, from where it is reached
	From    int          // inject: the first service, of Count; none: other records; change: where the last one ended
}

// outcome is what a client says.
type outcome struct {
	Count  int     `json:"count"`
	P50    float64 `json:"p50"` // µs
	P99    float64 `json:"p99"`
	Min    float64 `json:"min"`
	Wall   float64 `json:"wall"` // s
	CPU    float64 `json:"cpu"`  // s, of the client's thread
	Server float64 `json:"server"`
}

func TestMain(m *testing.M) {
	if text := os.Getenv(roleEnv); text != "" {
		if err := play(text); err != nil {
			fmt.Fprintln(os.Stderr, "perf:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// play is the whole of a role's process.
func play(text string) error {
	var r role
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return fmt.Errorf("role: %w", err)
	}
	switch r.Mode {
	case "inject":
		return inject(r)
	case "change":
		return changeRecords(r)
	case "peers":
		return playPeers()
	}
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(4) // blocking calls keep theirs
	runtime.LockOSThread()
	if err := nsthread.EnterNetns(r.Netns); err != nil {
		return err
	}
	go func() { // the parent is gone
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}()
	var set unix.CPUSet
	set.Set(r.CPU)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to CPU %d: %w", r.CPU, err)
	}
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: priority}
	if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
		return fmt.Errorf("set priority: %w", err)
	}
	switch r.Mode {
	case "serve":
		return serve(r)
	case "echo":
		return echo(r)
	}
	out, err := measure(r)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func serve(r role) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	sa := &unix.SockaddrInet4{Port: int(r.Addr.Port()), Addr: r.Addr.Addr().As4()}
	if err := unix.Bind(fd, sa); err != nil {
		return fmt.Errorf("bind %s: %w", r.Addr, err)
	}
	if err := unix.Listen(fd, 128); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	fmt.Println("ready")
	buf := make([]byte, 256<<10)
	for {
		c, _, e := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, 0, 0, 0)
		if e != 0 {
			return fmt.Errorf("accept: %w", e)
		}
		noDelay(int(c))
		// A single byte is a request and is answered; more is a stream, which
		// is answered at its end (by closing).
		for {
			n, e := transfer(unix.SYS_READ, int(c), buf)
			if e != 0 || n == 0 {
				break
			}
			if n == 1 {
				_, _ = transfer(unix.SYS_WRITE, int(c), buf[:1])
			}
		}
		_ = unix.Close(int(c))
	}
}

// echo answers every datagram with itself.
func echo(r role) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(r.Addr.Port()), Addr: r.Addr.Addr().As4()}); err != nil {
		return fmt.Errorf("bind %s: %w", r.Addr, err)
	}
	fmt.Println("ready")
	buf := make([]byte, 2048)
	from := new(unix.RawSockaddrInet4)
	for {
		size := uint32(unsafe.Sizeof(*from))
		n, _, e := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, uintptr(unsafe.Pointer(from)), uintptr(unsafe.Pointer(&size)))
		if e != 0 {
			return fmt.Errorf("receive on %s: %w", r.Addr, e)
		}
		_, _, _ = syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), n, 0, uintptr(unsafe.Pointer(from)), uintptr(size))
	}
}

// transfer is read or write without telling Go's scheduler.
func transfer(nr uintptr, fd int, buf []byte) (int, syscall.Errno) {
	n, _, e := syscall.RawSyscall(nr, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
	return int(n), e
}

func noDelay(fd int) { _ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

func dial(a netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Addr().As4()}
	*(*[2]byte)(unsafe.Pointer(&sa.Port)) = [2]byte{byte(a.Port() >> 8), byte(a.Port())}
	if _, _, e := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa)); e != 0 {
		_ = unix.Close(fd)
		return 0, fmt.Errorf("connect to %s: %w", a, e)
	}
	noDelay(fd)
	return fd, nil
}

func ask(fd int, b []byte) error {
	if _, e := transfer(unix.SYS_WRITE, fd, b); e != 0 {
		return fmt.Errorf("write: %w", e)
	}
	if n, e := transfer(unix.SYS_READ, fd, b); e != 0 || n != 1 {
		return fmt.Errorf("read %d: %w", n, e)
	}
	return nil
}

func measure(r role) (outcome, error) {
	switch r.Mode {
	case "stream":
		return stream(r)
	case "datagrams":
		return datagrams(r)
	case "connect":
		return connectAgain(r)
	}
	took := make([]float64, 0, 1<<18)
	one := []byte{1}
	once := func() error {
		fd, err := dial(r.Addr)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return ask(fd, one)
	}
	enough := func() bool { return len(took) == r.Count }
	if r.Mode == "rr" {
		fd, err := dial(r.Addr)
		if err != nil {
			return outcome{}, err
		}
		defer unix.Close(fd)
		once = func() error { return ask(fd, one) }
		end := time.Now().Add(time.Duration(r.Millis) * time.Millisecond)
		enough = func() bool { return len(took) == cap(took) || time.Now().After(end) }
	}
	const warm = 100
	for range warm {
		if err := once(); err != nil {
			return outcome{}, err
		}
	}
	cpu, begin := threadCPU(), time.Now()
	for !enough() {
		start := time.Now()
		if err := once(); err != nil {
			return outcome{}, err
		}
		took = append(took, float64(time.Since(start))/1e3)
	}
	out := outcome{Count: len(took), Wall: time.Since(begin).Seconds(), CPU: threadCPU() - cpu}
	out.P50, out.P99, out.Min = quantile(took, 0.5), quantile(took, 0.99), slices.Min(took)
	return out, nil
}

func stream(r role) (outcome, error) {
	fd, err := dial(r.Addr)
	if err != nil {
		return outcome{}, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 128<<10)
	cpu, begin := threadCPU(), time.Now()
	for left := r.Bytes; left > 0; {
		n, e := transfer(unix.SYS_WRITE, fd, buf[:min(left, int64(len(buf)))])
		if e != 0 {
			return outcome{}, fmt.Errorf("write: %w", e)
		}
		left -= int64(n)
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return outcome{}, fmt.Errorf("shut down: %w", err)
	}
	_, _ = transfer(unix.SYS_READ, fd, buf) // the end
	return outcome{Count: 1, Wall: time.Since(begin).Seconds(), CPU: threadCPU() - cpu}, nil
}

func threadCPU() float64 { return schedstat("/proc/thread-self/schedstat") }

// schedstat is the time on a CPU, in seconds, that the scheduler counted.
func schedstat(path string) float64 {
	b, _ := os.ReadFile(path)
	f := strings.Fields(string(b))
	if len(f) == 0 {
		return 0
	}
	ns, _ := strconv.ParseFloat(f[0], 64)
	return ns / 1e9
}

// processCPU is schedstat of all threads.
func processCPU(pid int) (sum float64) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, t := range tasks {
		sum += schedstat(t)
	}
	return sum
}

func command(t testing.TB, r role) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env, cmd.Stderr = append(os.Environ(), roleEnv+"="+string(text), "GODEBUG=asyncpreemptoff=1"), os.Stderr
	if _, err := cmd.StdinPipe(); err != nil { // kept open: its end ends the process
		t.Fatal(err)
	}
	return cmd
}

// startServer runs a server ("serve" for TCP, "echo" for UDP) until the test ends and
// returns its process.
func startServer(t testing.TB, mode, netns string, cpu int, addr netip.AddrPort) (pid int) {
	t.Helper()
	cmd := command(t, role{Mode: mode, Netns: netns, CPU: cpu, Addr: addr})
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("start server: %v", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("server on %s: %v", addr, err)
	}
	return cmd.Process.Pid
}

// runClient runs a client to its end; serverPID is whose CPU time is taken, too.
func runClient(t testing.TB, r role, serverPID int) outcome {
	t.Helper()
	cmd := command(t, r)
	before := processCPU(serverPID)
	b, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s to %s: %v", r.Mode, r.Addr, err)
	}
	var out outcome
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatalf("%s to %s: %v: %q", r.Mode, r.Addr, err, b)
	}
	out.Server = processCPU(serverPID) - before
	return out
}
