// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// The generator plays the API servers of all remote clusters in one process of
// its own. It is told what to do by a line of JSON each, and answers by one.

// order is one line to the generator.
type order struct {
	Op string // join, connect, change, stats

	Worlds  []world // join
	Tokens  []string
	Version string

	Rate   int // change: writes a second, of all remotes together
	Millis int
}

// answer is one line from it.
type answer struct {
	Error  string
	Counts counts
	// Of the last change order: from a write to its batch's acknowledgement,
	// and how many writes were not acknowledged half-way and when it ended.
	P50, P99          float64 // ms
	Behind, BehindMid int
	Wrote             int
}

// generator is the process, seen from the test.
type generator struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	group *group
}

func startGenerator(t *testing.T) *generator {
	t.Helper()
	text, err := json.Marshal(role{Mode: "peers"})
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	g := &generator{group: newGroup(t, "peers")}
	g.cmd = g.group.command(self)
	g.cmd.Env, g.cmd.Stderr = append(os.Environ(), roleEnv+"="+string(text)), os.Stderr
	if g.in, err = g.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := g.cmd.StdoutPipe()
	if err == nil {
		err = g.cmd.Start()
	}
	if err != nil {
		t.Fatalf("start generator: %v", err)
	}
	g.out = bufio.NewReader(out)
	t.Cleanup(g.stop)
	return g
}

func (g *generator) stop() { _ = g.cmd.Process.Kill(); _ = g.cmd.Wait() }

// do gives an order and waits for the answer.
func (g *generator) do(t *testing.T, o order) answer {
	t.Helper()
	if err := g.tell(o); err != nil {
		t.Fatalf("generator, %s: %v", o.Op, err)
	}
	return g.heard(t, o.Op)
}

func (g *generator) tell(o order) error { return json.NewEncoder(g.in).Encode(o) }

func (g *generator) heard(t *testing.T, op string) answer {
	t.Helper()
	line, err := g.out.ReadBytes('\n')
	var a answer
	if err == nil {
		err = json.Unmarshal(line, &a)
	}
	if err == nil && a.Error != "" {
		err = errors.New(a.Error)
	}
	if err != nil {
		t.Fatalf("generator, %s: %v", op, err)
	}
	return a
}

// playPeers is the generator's process; it ends with its input.
func playPeers() error {
	p := &peers{}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := in.Decode(&o); err != nil {
			return nil // the test is over
		}
		a, err := p.obey(ctx, o)
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

// peers are the remotes of a generator.
type peers struct {
	remotes []*remote
	next    int // whose turn it is to write,
	n       int // which address
}

func (p *peers) obey(ctx context.Context, o order) (answer, error) {
	switch o.Op {
	case "join":
		return answer{}, p.join(ctx, o)
	case "connect":
		for _, r := range p.remotes {
			go r.run(ctx, func(err error) { // ends with the process
				if os.Getenv("HAWSER_PERF_DEBUG") != "" {
					fmt.Fprintln(os.Stderr, time.Now().Format("15:04:05.000"), err)
				}
			})
		}
		return answer{}, nil
	case "change":
		return p.change(ctx, o), nil
	case "stats":
		return answer{Counts: p.counts()}, nil
	}
	return answer{}, fmt.Errorf("unknown order %q", o.Op)
}

// join makes the remotes and has each use its token.
func (p *peers) join(ctx context.Context, o order) error {
	made := make([]*remote, len(o.Worlds))
	errs := make([]error, len(o.Worlds))
	var all sync.WaitGroup
	slots := make(chan struct{}, 4)
	for i, w := range o.Worlds {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			if made[i], errs[i] = newRemote(w); errs[i] == nil {
				errs[i] = made[i].join(ctx, o.Tokens[i], o.Version)
			}
		})
	}
	all.Wait()
	p.remotes = append(p.remotes, made...)
	return errors.Join(errs...)
}

func (p *peers) counts() (c counts) {
	for _, r := range p.remotes {
		r.mu.Lock()
		c.Sent += r.carried.Sent
		c.Snapshots += r.carried.Snapshots
		c.Resumes += r.carried.Resumes
		r.mu.Unlock()
	}
	return c
}

// behind is the number of writes that are not acknowledged.
func (p *peers) behind() (n int) {
	for _, r := range p.remotes {
		r.mu.Lock()
		n += len(r.log) - r.stored
		r.mu.Unlock()
	}
	return n
}

// change writes at the rate, one remote after the other; it waits for the last
// acknowledgement, up to 10 s.
func (p *peers) change(ctx context.Context, o order) (a answer) {
	for _, r := range p.remotes {
		r.mu.Lock()
		r.acks = nil
		r.mu.Unlock()
	}
	total := o.Rate * o.Millis / 1000
	begin := time.Now()
	for a.Wrote < total && ctx.Err() == nil {
		due := min(total, int(time.Since(begin).Seconds()*float64(o.Rate)))
		now := time.Now().UnixNano()
		for ; a.Wrote < due; a.Wrote++ {
			r := p.remotes[p.next%len(p.remotes)]
			r.write(p.n/len(p.remotes), now)
			p.next++
			p.n++
		}
		if a.BehindMid == 0 && a.Wrote >= total/2 {
			a.BehindMid = p.behind()
		}
		time.Sleep(500 * time.Microsecond)
	}
	a.Behind = p.behind()
	for end := time.Now().Add(10 * time.Second); p.behind() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	var acks []float64
	for _, r := range p.remotes {
		r.mu.Lock()
		acks = append(acks, r.acks...)
		r.mu.Unlock()
	}
	if len(acks) > 0 {
		a.P50, a.P99 = quantile(acks, 0.5), quantile(acks, 0.99)
	}
	a.Counts = p.counts()
	return a
}
