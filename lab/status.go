// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/status"
)

// Status is a lab as it is now.
type Status struct {
	Name    string      `json:"name"`
	State   string      `json:"state"` // ready, incomplete or damaged
	Started time.Time   `json:"started"`
	Rows    []StatusRow `json:"rows"`
	Spec    Spec        `json:"-"`
	Problem []string    `json:"problems,omitempty"`
}

// StatusRow is one program or pod.
type StatusRow struct {
	Kind    string `json:"kind"` // apiserver, agent, pod
	Name    string `json:"name"` // as `hawser lab exec` takes it
	State   string `json:"state"`
	Address string `json:"address"`
	PID     int    `json:"pid"`
	Detail  string `json:"detail,omitempty"`
}

// Status looks at every process and asks every program.
func (l *Lab) Status(ctx context.Context) Status {
	s := l.snapshot()
	st := Status{Name: l.lab, State: "ready", Started: s.Started, Spec: s.Spec}
	if s.Ready.IsZero() {
		st.State = "incomplete"
		st.Problem = append(st.Problem, "lab up did not finish; remove it with: hawser lab down --name "+l.lab)
	}
	for _, c := range s.Clusters {
		row := StatusRow{Kind: "apiserver", Name: c.Name + "/ctl", Address: c.Control.String()}
		st.add(l.ask(ctx, row, c.Name+"-apiserver", apiServerReady(c.Socket)))
		for _, n := range c.Members {
			row := StatusRow{Kind: "agent", Name: n.Name, Address: n.Address.String()}
			st.add(l.ask(ctx, row, n.Name+"-agent", agentReady(n.Socket)))
		}
	}
	for _, p := range s.Pods {
		row := StatusRow{
			Kind: "pod", Name: p.Cluster + "/" + p.Name, Address: strings.Join(p.Addresses, ","),
			Detail: p.Namespace + " on " + p.Node,
		}
		st.add(l.ask(ctx, row, p.process(), nil))
	}
	return st
}

func (s *Status) add(r StatusRow) {
	s.Rows = append(s.Rows, r)
	if r.State != "running" && s.State == "ready" {
		s.State = "damaged"
	}
}

func (l *Lab) ask(ctx context.Context, row StatusRow, process string, ready func(context.Context) error) StatusRow {
	row.State = "missing"
	for _, p := range l.snapshot().Processes {
		if p.Name != process {
			continue
		}
		row.PID = p.PID
		switch {
		case !p.alive():
			row.State, row.Detail = "dead", "see "+p.Log
		case ready == nil:
			row.State = "running"
		default:
			row.State = "running"
			if err := ready(ctx); err != nil {
				row.State, row.Detail = "not ready", status.Convert(err).Message()
			}
		}
	}
	return row
}

// Broken describes a lab that has no record but is there.
func Broken(name string) (Status, bool) {
	left := leftovers(names{name})
	if len(left) == 0 {
		return Status{}, false
	}
	if _, err := os.Stat(names{name}.stateFile()); !errors.Is(err, os.ErrNotExist) {
		return Status{}, false
	}
	return Status{Name: name, State: "damaged", Problem: left}, true
}
