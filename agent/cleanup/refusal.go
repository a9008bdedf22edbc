// SPDX-License-Identifier: Apache-2.0

package cleanup

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/hawser-mesh/hawser/datapath/loader"
)

// RunningError says that an agent runs.
type RunningError struct{ Who []string }

func (e *RunningError) Error() string {
	return "an agent runs on this node: " + strings.Join(e.Who, ", ")
}

// ElsewhereError says that programs of ours are on this host which are not those of
// the given pins: to remove what can be seen would cut an agent's pods off, and
// leave its maps and links.
type ElsewhereError struct {
	PinPath  string
	Programs []string // such as "from_host@hawser_net"
	Who      []string // processes that have them open
}

func (e *ElsewhereError) Error() string {
	text := fmt.Sprintf("there are programs of an agent that are not pinned in %s: %s", e.PinPath, strings.Join(e.places(), ", "))
	if len(e.Who) > 0 {
		text += "; an agent runs: " + strings.Join(e.Who, ", ")
	}
	return text
}

// places are the programs by where they sit; of very many (pods) some.
func (e *ElsewhereError) places() (out []string) {
	const most = 8
	on, order := map[string][]string{}, []string(nil)
	for _, p := range e.Programs {
		name, place, _ := strings.Cut(p, "@")
		if on[place] == nil {
			order = append(order, place)
		}
		on[place] = append(on[place], name)
	}
	for i, place := range order {
		if i == most {
			return append(out, fmt.Sprintf("and on %d more", len(order)-most))
		}
		out = append(out, strings.Join(on[place], ", ")+" on "+place)
	}
	return out
}

// Refusal tells why nothing is to be removed: an ElsewhereError, a RunningError, or
// that one cannot look. It is nil when there is no reason, and does not look at
// cfg.Force. It blocks for up to a second.
func Refusal(ctx context.Context, cfg Config) error {
	who := answers(ctx, cfg.Socket)
	elsewhere, err := loader.Elsewhere(cfg.PinPath, cfg.Cgroup)
	if err != nil {
		return err
	}
	objects, err := loader.Inventory(cfg.PinPath)
	if err != nil {
		return err
	}
	held := holders()
	if len(elsewhere) > 0 {
		e := &ElsewhereError{PinPath: cfg.PinPath, Who: who}
		for _, o := range elsewhere {
			e.Programs = append(e.Programs, o.Name)
			e.Who = appendNew(e.Who, held[object{loader.KindProgram, o.Program}])
		}
		return e
	}
	for _, o := range objects {
		if o.Kind == loader.KindMap {
			who = appendNew(who, held[object{o.Kind, o.ID}])
		}
	}
	if len(who) > 0 {
		return &RunningError{who}
	}
	return nil
}

// answers tells that an agent answers on the socket.
func answers(ctx context.Context, socket string) []string {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil
	}
	_ = c.Close()
	return []string{"it answers on " + socket}
}

func appendNew(to, from []string) []string {
	for _, s := range from {
		if !slices.Contains(to, s) {
			to = append(to, s)
		}
	}
	return to
}
