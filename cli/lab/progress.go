// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/hawser-mesh/hawser/lab"
)

// progress shows steps: on a terminal with a line that says what is going on,
// elsewhere as one plain line per step that is over.
type progress struct {
	w        io.Writer
	terminal bool
	colour   bool
	quiet    bool

	mu      sync.Mutex
	running []string
	since   time.Time
	stop    chan struct{}
	done    sync.WaitGroup
}

func newProgress(w io.Writer, quiet bool) *progress {
	p := &progress{w: w, quiet: quiet, since: time.Now(), stop: make(chan struct{})}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.terminal = true
		p.colour = os.Getenv("NO_COLOR") == "" //nolint:misspell // it is called so
	}
	if p.terminal && !quiet {
		p.done.Go(p.animate)
	}
	return p
}

// end removes the line that says what is going on.
func (p *progress) end() {
	close(p.stop)
	p.done.Wait()
}

func (p *progress) animate() {
	const frame = 100 * time.Millisecond
	tick := time.NewTicker(frame)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			p.mu.Lock()
			fmt.Fprint(p.w, "\r\x1b[K")
			p.mu.Unlock()
			return
		case <-tick.C:
			p.mu.Lock()
			p.line()
			p.mu.Unlock()
		}
	}
}

// line draws what runs now. Callers hold mu.
func (p *progress) line() {
	if !p.terminal || p.quiet || len(p.running) == 0 {
		return
	}
	dots := [...]string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}
	elapsed := time.Since(p.since)
	spin := dots[int(elapsed/(100*time.Millisecond))%len(dots)]
	fmt.Fprintf(p.w, "\r\x1b[K  %s %s  %.1fs", spin, strings.Join(p.running, ", "), elapsed.Seconds())
}

func (p *progress) update(e lab.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !e.Over {
		p.running = append(p.running, e.Step)
		p.line()
		return
	}
	for i, s := range p.running {
		if s == e.Step {
			p.running = append(p.running[:i], p.running[i+1:]...)
			break
		}
	}
	if p.quiet {
		return
	}
	if p.terminal {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
	mark, detail := p.paint("✓", "32"), e.Detail
	if e.Err != nil {
		mark, detail = p.paint("✗", "31"), "failed"
	}
	// Short names stand in a column; a long one, a sentence, has its own.
	const nameWidth, sentenceWidth, width = 7, 38, 78
	name := pad(e.Step, nameWidth)
	if utf8.RuneCountInString(e.Step) > nameWidth {
		name = pad(e.Step, sentenceWidth)
	}
	fmt.Fprintf(p.w, "  %s %s %5.1fs\n", mark, pad(name+" "+detail, width), e.Elapsed.Seconds())
	p.line()
}

func (p *progress) paint(s, code string) string {
	if !p.colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// pad fills s to a width in characters.
func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
}
