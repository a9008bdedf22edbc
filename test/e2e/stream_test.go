// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// openStream is a TCP connection that a script keeps open to `lab workload
// echo`.
type openStream struct {
	probe
	conn net.Conn
	r    *bufio.Reader
}

// cmdStream is `stream open NAME FROM TO tcp/8080`, `stream ask NAME`: a request
// on the open connection is answered; `stream stopped NAME [WHAT=…]…`: it is
// not, and the drop is reported; `stream resumes NAME`: what was sent then is
// answered after all.
func cmdStream(s *script, args []string) (string, error) {
	const help = "stream open NAME FROM TO tcp/8080 | stream ask|stopped|resumes NAME [WHAT=…]…"
	if len(args) < 2 {
		return "", usage(help)
	}
	if args[0] == "open" && len(args) == 5 {
		p, err := s.newProbe(args[2:])
		if err != nil {
			return "", err
		}
		o := &openStream{probe: p}
		err = nsthread.InNetns(p.from.netns, func() error {
			o.conn, err = p.dial()
			return err
		})
		if err != nil {
			return "", err
		}
		o.r = bufio.NewReader(o.conn)
		s.streams[args[1]] = o
		return "", o.ask(patience)
	}
	o, ok := s.streams[args[1]]
	if !ok {
		return "", fmt.Errorf("no stream %q", args[1])
	}
	switch args[0] {
	case "ask":
		return "", o.ask(patience)
	case "stopped":
		return "", s.stopped(o, args[2:], help)
	case "resumes":
		const limit = time.Minute // the sender repeats ever more slowly
		if err := o.conn.SetDeadline(time.Now().Add(limit)); err != nil {
			return "", err
		}
		_, err := o.r.Peek(1)
		return "", err
	}
	return "", usage(help)
}

func (o *openStream) ask(wait time.Duration) error {
	if err := o.conn.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	_, err := get(o.conn, o.r)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return &errNo{noAnswer}
	}
	return err
}

func (s *script) stopped(o *openStream, options []string, help string) error {
	x := expectedDrop{reason: "policy denied", node: o.to.node}
	if err := x.options(options, help); err != nil {
		return err
	}
	if err := s.expectTuple(&x, o.probe); err != nil {
		return err
	}
	if err := within(callTimeout, func() error { return s.world.events.follows(x.node) }); err != nil {
		return err
	}
	before, err := s.world.drops(x.node, x.reason)
	if err != nil {
		return err
	}
	mark := s.world.events.mark()
	if err := o.ask(silence); !isSilence(err) {
		return fmt.Errorf("wanted the open connection silent, got: %w", orElse(err, "an answer"))
	}
	return s.seen(mark, before, 1, x)
}
