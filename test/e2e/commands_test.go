// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/hawser-mesh/hawser/internal/nsthread"
	"github.com/hawser-mesh/hawser/lab"
)

// commands are those that scripts have beside testscript's; see also
// eventually. PLACE is CLUSTER/POD, CLUSTER/ctl, a node, fabric, an address,
// or NODE=ADDRESS, one of its addresses.
func commands() map[string]command {
	return map[string]command{
		"lab":         cmdLab,        // the lab that the script runs in
		"lose-state":  cmdLoseState,  // of a node's agent
		"agent-build": cmdAgentBuild, // what agents are started
		"crash":       cmdCrash,      // of an agent at any point
		"vanish":      cmdVanish,     // of a pod, without a word to the agent
		"server":      cmdServer,     // a pod that answers `reach` and `load`
		"hawser":      cmdHawser,     // the CLI
		"json":        cmdJSON,       // a value in what the CLI prints
		"set":         cmdSet,        // what a command prints, as a variable
		"address":     cmdAddress,    // of a place
		"identity":    cmdIdentity,   // of a pod
		"reach":       cmdReach,      // a place answers another
		"train":       cmdTrain,      // of datagrams, all of which are answered
		"denied":      cmdDenied,     // it does not, and the drop is seen
		"refused":     cmdRefused,    // a place says at once that nothing listens
		"monitored":   cmdMonitored,  // a drop is told by `hawser monitor`
		"spread":      cmdSpread,     // who answers for a service
		"serve":       cmdServe,      // answers at a place that is no pod
		"seen-as":     cmdSeenAs,     // the address that a question comes from
		"who":         cmdWho,        // answers for a service, once
		"asking":      cmdAsking,     // requests in the background, none may fail
		"requests":    cmdRequests,   // 500 a second, some of which may fail
		"busy":        cmdBusy,       // both cores, for a while
		"dialing":     cmdDialing,    // a pod's own connection, balanced at its socket
		"stream":      cmdStream,     // an open TCP connection
		"load":        cmdLoad,       // load that notices every loss
		"forge":       cmdForge,      // packets made by hand
		"wire":        cmdWire,       // what crosses the fabric
		"route":       cmdRoute,      // of the fabric to a pod, past the tunnels
		"pins":        cmdPins,       // ids of a node's pinned maps, programs and links
		"pause":       cmdPause,      // how long a fault lasts; nothing waits for a state by it
		"keys":        cmdKeys,       // of a cluster's etcd
		"published":   cmdPublished,  // a key is in a cluster's etcd
		"exhaust":     cmdExhaust,    // a cluster's identity numbers
		"expired":     cmdExpired,    // a join token is
		"publish":     cmdPublish,    // a key into a cluster's etcd
		"token":       cmdToken,      // a join token, changed
		"peers":       cmdPeers,      // addresses that a node has TCP connections with
		"own":         cmdOwn,        // one more address of a node
		"mtu":         cmdMTU,        // of a pod's route
		"dns":         cmdDNS,        // what a pod's name server answers
		"upstream":    cmdUpstream,   // a resolver outside the mesh
		"host":        cmdHost,       // files, routes and sysctls of this machine
		"metric":      cmdMetric,     // a sample that a program serves
		"external":    cmdExternal,   // a host that speaks VXLAN and runs no agent
		"total":       cmdTotal,      // the sum of such samples
	}
}

// cmdServer is `server CLUSTER/POD NODE NAMESPACE [KEY=VALUE]… [ns:KEY=VALUE]… [port:NAME=PORT]…`: a
// pod with these labels and names for ports that runs `lab workload load-server`, up to where it answers.
func cmdServer(s *script, args []string) (string, error) {
	if len(args) < 3 {
		return "", usage("server CLUSTER/POD NODE NAMESPACE [KEY=VALUE]… [ns:KEY=VALUE]… [port:NAME=PORT]…")
	}
	run := []string{"lab", "run", args[0], "--node", args[1], "--namespace", args[2]}
	for _, l := range args[3:] {
		if port, ok := strings.CutPrefix(l, "port:"); ok {
			run = append(run, "--port", port)
			continue
		}
		if of, ok := strings.CutPrefix(l, "ns:"); ok {
			run = append(run, "--namespace-label", of)
			continue
		}
		run = append(run, "--label", l)
	}
	out, err := cmdHawser(s, append(run, "--", s.bin.Hawser, "lab", "workload", "load-server", "--listen", fmt.Sprintf(":%d", loadPort)))
	if err != nil {
		return out, err
	}
	p, err := s.newProbe([]string{args[1], args[0], fmt.Sprintf("tcp/%d", loadPort)})
	if err != nil {
		return out, err
	}
	return out, within(callTimeout, p.ask)
}

// cmdSpread is `spread FROM ADDRESS:PORT REQUESTS [NODE…]`: all requests, each on
// a new connection, are answered, and by backends on exactly these nodes.
func cmdSpread(s *script, args []string) (string, error) {
	if len(args) < 3 {
		return "", usage("spread FROM ADDRESS tcp/PORT REQUESTS [NODE…]")
	}
	var n int
	if _, err := fmt.Sscan(args[3], &n); err != nil {
		return "", err
	}
	by := map[string]int{}
	for range n {
		who, err := s.whoAnswers(args[:3])
		if err != nil {
			return "", err
		}
		by[who]++
	}
	s.count("requests", uint64(n))
	for _, node := range args[4:] {
		if by[node] == 0 {
			return "", no("%s answered none of %d requests: %v", node, n, by)
		}
	}
	if len(by) != len(args[4:]) {
		return "", no("%v answered, want only %v", by, args[4:])
	}
	return fmt.Sprintln(by), nil
}

// cmdWho is `who FROM ADDRESS tcp/PORT`: prints the node of who answers.
func cmdWho(s *script, args []string) (string, error) {
	if len(args) != 3 {
		return "", usage("who FROM ADDRESS tcp/PORT")
	}
	node, err := s.whoAnswers(args)
	return node + "\n", err
}

// whoAnswers asks once and returns the node of the backend.
func (s *script) whoAnswers(args []string) (string, error) {
	p, err := s.newProbe(args)
	if err != nil {
		return "", err
	}
	var answer string
	err = nsthread.InNetns(p.from.netns, func() error {
		answer, err = p.fetch()
		return err
	})
	if err != nil {
		return "", no("a request from %s failed: %v", args[0], err)
	}
	for f := range strings.FieldsSeq(answer) {
		if node, ok := strings.CutPrefix(f, "node="); ok {
			return node, nil
		}
	}
	return "", fmt.Errorf("answer %q names no node", answer)
}

// cmdAsking is `asking start FROM ADDRESS tcp/PORT`: requests without end, each
// on a new connection; `asking stop`: none of them failed.
func cmdAsking(s *script, args []string) (string, error) {
	switch {
	case len(args) == 4 && args[0] == "start":
		ctx, cancel := context.WithCancel(context.Background())
		a := &asking{stop: cancel, done: make(chan struct{})}
		s.asking = a
		s.ts.Defer(func() { cancel(); <-a.done })
		const pace = 20 * time.Millisecond // enough to see a fault, and no load
		go func() {
			defer close(a.done)
			for ctx.Err() == nil && a.err == nil {
				_, a.err = s.whoAnswers(args[1:])
				a.n++
				time.Sleep(pace)
			}
		}()
		return "", nil
	case len(args) == 1 && args[0] == "stop" && s.asking != nil:
		s.asking.stop()
		<-s.asking.done
		s.count("requests", s.asking.n)
		return fmt.Sprintf("%d requests\n", s.asking.n), s.asking.err
	}
	return "", usage("asking start FROM ADDRESS tcp/PORT | asking stop")
}

// asking is requests in the background; n and err are for after done.
type asking struct {
	stop context.CancelFunc
	done chan struct{}
	n    uint64
	err  error
}

// cmdRefused is `refused FROM TO PROTOCOL/PORT`: the answer is that nothing
// listens, which is neither silence nor success.
func cmdRefused(s *script, args []string) (string, error) {
	if len(args) != 3 {
		return "", usage("refused FROM TO tcp/PORT|udp/PORT")
	}
	p, err := s.newProbe(args)
	if err != nil {
		return "", err
	}
	switch err := p.ask(); {
	case err == nil:
		return "", no("%s answered", args[1])
	case strings.Contains(err.Error(), syscall.ECONNREFUSED.Error()):
		return "", nil
	default:
		return "", err
	}
}

// cmdMonitored is `monitored LINE FROM TO PROTOCOL[/PORT] [TYPE]`: while the
// probe is tried, `hawser monitor --type TYPE` (drop) prints a line that matches.
func cmdMonitored(s *script, args []string) (string, error) {
	kind := "drop"
	if len(args) == 5 {
		kind, args = args[4], args[:4]
	}
	if len(args) != 4 {
		return "", usage("monitored LINE FROM TO tcp/PORT|udp/PORT|icmp [TYPE]")
	}
	want, err := regexp.Compile(args[0])
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.bin.Hawser, s.world.flags([]string{"monitor", "--type", kind})...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	defer func() { _ = cmd.Wait() }() // killed
	defer cancel()
	go func() {
		for ctx.Err() == nil { // until the monitor listens
			if p, err := s.newProbe(args[1:]); err == nil {
				p.wait = silence
				_ = p.ask()
			}
		}
	}()
	var seen strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if want.MatchString(lines.Text()) {
			return lines.Text() + "\n", nil
		}
		fmt.Fprintln(&seen, lines.Text())
	}
	return "", fmt.Errorf("no line matches; the monitor printed:\n%s", seen.String())
}

// cmdRoute is `route add|del POD`: the fabric sends what is for the pod to its
// node as it is.
func cmdRoute(s *script, args []string) (string, error) {
	if len(args) != 2 {
		return "", usage("route add|del CLUSTER/POD")
	}
	pod, err1 := s.place(args[1])
	node, err2 := s.place(pod.node)
	fabric, err3 := s.place("fabric")
	if err := errors.Join(err1, err2, err3); err != nil {
		return "", err
	}
	return "", nsthread.InNetns(fabric.netns, func() error {
		r := &netlink.Route{Dst: netlink.NewIPNet(pod.addr.AsSlice()), Gw: node.addr.AsSlice()}
		if args[0] == "add" {
			return netlink.RouteAdd(r)
		}
		return netlink.RouteDel(r)
	})
}

// cmdOwn is `own add|del NODE ADDRESS`: the address is on the node's loopback
// device, or not any more.
func cmdOwn(s *script, args []string) (string, error) {
	if len(args) != 3 || args[0] != "add" && args[0] != "del" {
		return "", usage("own add|del NODE ADDRESS")
	}
	node, err := s.place(args[1] + "=" + args[2])
	if err != nil {
		return "", err
	}
	change := func(do func(netlink.Link, *netlink.Addr) error) error {
		return nsthread.InNetns(node.netns, func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return do(lo, &netlink.Addr{IPNet: netlink.NewIPNet(node.addr.AsSlice())})
		})
	}
	if args[0] == "del" {
		return "", change(netlink.AddrDel)
	}
	s.ts.Defer(func() { _ = change(netlink.AddrDel) }) // may be gone
	return "", change(netlink.AddrAdd)
}

// cmdMTU is `mtu POD`: prints the MTU of the pod's default route.
func cmdMTU(s *script, args []string) (string, error) {
	if len(args) != 1 {
		return "", usage("mtu CLUSTER/POD")
	}
	p, err := s.place(args[0])
	if err != nil {
		return "", err
	}
	mtu := 0
	err = nsthread.InNetns(p.netns, func() error {
		far := netip.MustParseAddr("192.0.2.1")
		if p.addr.Is6() {
			far = netip.MustParseAddr("2001:db8::1")
		}
		rs, err := netlink.RouteGet(far.AsSlice())
		for _, r := range rs {
			mtu = r.MTU
		}
		return err
	})
	return fmt.Sprintln(mtu), err
}

// cmdBusy is `busy TIME`: every core of this machine has more to do than it can,
// as long as the environment variable HAWSER_E2E_BUSY says, or TIME.
func cmdBusy(_ *script, args []string) (string, error) {
	if len(args) != 1 {
		return "", usage("busy TIME")
	}
	text := args[0]
	if long := os.Getenv("HAWSER_E2E_BUSY"); long != "" {
		text = long
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var wg sync.WaitGroup
	for range 2 * runtime.NumCPU() {
		cmd := exec.CommandContext(ctx, "sh", "-c", "while :; do :; done")
		if err := cmd.Start(); err != nil {
			return "", err
		}
		wg.Go(func() { _ = cmd.Wait() }) // killed
	}
	wg.Wait()
	return "", nil
}

func cmdPause(_ *script, args []string) (string, error) {
	if len(args) != 1 {
		return "", usage("pause TIME")
	}
	d, err := time.ParseDuration(args[0])
	time.Sleep(d)
	return "", err
}

func (s *script) cluster(name string) (lab.Cluster, error) {
	for _, c := range s.world.lab.Clusters() {
		if c.Name == name {
			return c, nil
		}
	}
	return lab.Cluster{}, fmt.Errorf("no cluster %q", name)
}

// cmdLoseState is `lose-state NODE`: removes what the node's agent keeps on disk.
func cmdLoseState(s *script, args []string) (string, error) {
	if len(args) != 1 {
		return "", usage("lose-state NODE")
	}
	return "", os.RemoveAll(filepath.Join(lab.RunDir, s.world.lab.Name(), args[0], "state"))
}
