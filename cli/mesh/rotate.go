// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/internal/pki"
)

const (
	rotatePoll = 300 * time.Millisecond
	// comeBack is how long an API server may take to begin anew.
	comeBack = 30 * time.Second
	// nodesWait is how long nodes of the cluster are waited for at the least: they
	// confirm once they have reached the API server that begins anew.
	nodesWait = time.Minute
)

// rotation is one `mesh rotate-ca`.
type rotation struct {
	s          *session.Session
	out        io.Writer // for people; discards with -o
	wait       time.Duration
	requireAll bool
	leave      []string // nodes that may be cut off
	nodesWait  time.Duration
	stepping   bool // it has answered before: who is away comes back
}

func newRotateCA(s *session.Session) *cobra.Command {
	r := &rotation{s: s, nodesWait: nodesWait}
	var show bool
	cmd := &cobra.Command{
		Use:   "rotate-ca",
		Short: "Replace this cluster's CA while everything runs",
		Long: "Replace this cluster's CA while everything runs: another CA is made and told to\n" +
			"peers and nodes, then signs all certificates, then the old one is retired. Each\n" +
			"step waits until all have confirmed it, up to --wait. A peer that has not by then\n" +
			"is left behind, and joins again by token; --require-all stops instead. Nodes of\n" +
			"this cluster are waited for a minute at the least, and the command stops rather\n" +
			"than cut one off, unless --leave-node names it: then it must be invited again.\n" +
			"Interrupted or stopped, the command goes on where it was when it is run again.\n" +
			"Administrators need new certificates: hawser-apiserver issue --admin.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.out = cmd.ErrOrStderr()
			if s.Quiet {
				r.out = io.Discard
			}
			var report *hawserv1.CAStatusReport
			var err error
			if show {
				report, err = r.status(cmd.Context())
			} else {
				report, err = r.run(cmd.Context())
			}
			if err != nil {
				return err
			}
			return printer.One(cmd.OutOrStdout(), s.Output, report, func(w io.Writer) error { return showCA(w, report) })
		},
	}
	cmd.Flags().DurationVar(&r.wait, "wait", 5*time.Minute, "how long each step waits for those who have not confirmed")
	cmd.Flags().BoolVar(&r.requireAll, "require-all", false, "stop, and leave nobody behind, when somebody has not confirmed by then")
	cmd.Flags().StringSliceVar(&r.leave, "leave-node", nil, "a node that is cut off if it has not confirmed by then; may be repeated")
	cmd.Flags().BoolVar(&show, "status", false, "only show how far it has come")
	return cmd
}

// run does the steps that are left.
func (r *rotation) run(ctx context.Context) (*hawserv1.CAStatusReport, error) {
	report, err := r.status(ctx)
	if err != nil {
		return nil, err
	}
	steps := []pki.Phase{pki.PhaseAnnounced, pki.PhaseSwitched, pki.PhaseNone}
	switch pki.Phase(report.GetPhase()) {
	case pki.PhaseAnnounced:
		steps = steps[1:]
	case pki.PhaseSwitched:
		steps = steps[2:]
	}
	for i, to := range steps {
		if i > 0 || len(steps) < 3 { // what an earlier step changed must be known
			if err := r.confirmed(ctx, to); err != nil {
				return nil, err
			}
		}
		if err := r.step(ctx, to); err != nil {
			return nil, err
		}
		fmt.Fprintln(r.out, map[pki.Phase]string{
			pki.PhaseAnnounced: "Announced: another CA is told to peers and nodes; the present one still signs.",
			pki.PhaseSwitched:  "Switched: the new CA signs; the old one is still believed.",
			pki.PhaseNone:      "Retired: the old CA is not believed any more.",
		}[to])
	}
	return r.settled(ctx)
}

// settled is the status once all have heard of the last step, or soon after.
func (r *rotation) settled(ctx context.Context) (*hawserv1.CAStatusReport, error) {
	for deadline := time.Now().Add(min(r.wait, comeBack)); ; {
		report, err := r.status(ctx)
		if err != nil || len(report.GetWaiting()) == 0 || time.Now().After(deadline) {
			return report, err
		}
		select {
		case <-time.After(rotatePoll):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// confirmed waits until nobody is missing, or the time is up. Who may be left
// behind then is; for others it stops.
func (r *rotation) confirmed(ctx context.Context, next pki.Phase) error {
	began := time.Now()
	last := ""
	for {
		report, err := r.status(ctx)
		if err != nil {
			return err
		}
		must, may := r.sort(report.GetWaiting())
		missing := strings.Join(append(slices.Clone(must), may...), ", ")
		if missing == "" {
			return nil
		}
		if missing != last {
			fmt.Fprintf(r.out, "Waiting for %s\n", missing)
			last = missing
		}
		waited := time.Since(began)
		switch {
		case waited <= r.wait:
		case r.requireAll:
			return session.Answer("%s not confirmed after %s; the step to %q was not done. Nothing is lost: run it again to go on, or without --require-all to leave peers behind",
				missing, r.wait, next)
		case len(must) == 0:
			fmt.Fprintf(r.out, "Left behind: %s. A peer joins again by token (hawser mesh leave, then invite), a node is invited again (hawser node invite)\n", missing)
			return nil
		case waited > r.nodesWait:
			return session.Answer("%s not confirmed after %s; the step to %q was not done, as it would cut off what is of this cluster. Nothing is lost: see there (hawser mesh doctor) and run it again to go on. "+
				"A node that will not come back: hawser node forget <node> --yes. One that may be cut off, and is invited again afterwards: --leave-node <node>",
				strings.Join(must, ", "), max(r.wait, r.nodesWait), next)
		}
		select {
		case <-time.After(rotatePoll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sort tells who of the missing has to confirm from who may be left behind: peers,
// and the nodes that are named.
func (r *rotation) sort(waiting []string) (must, may []string) {
	for _, w := range waiting {
		node, isNode := strings.CutPrefix(w, "node ")
		if strings.HasPrefix(w, "peer ") || isNode && slices.Contains(r.leave, node) {
			may = append(may, w)
		} else {
			must = append(must, w)
		}
	}
	return must, may
}

func (r *rotation) step(ctx context.Context, to pki.Phase) error {
	return r.call(ctx, func(ctx context.Context, c hawserv1.MeshClient) error {
		_, err := c.RotateCA(ctx, &hawserv1.RotateCARequest{To: string(to), LeaveNodes: r.leave})
		return err
	})
}

func (r *rotation) status(ctx context.Context) (report *hawserv1.CAStatusReport, err error) {
	err = r.call(ctx, func(ctx context.Context, c hawserv1.MeshClient) (err error) {
		report, err = c.CAStatus(ctx, &hawserv1.CAStatusRequest{})
		return err
	})
	return report, err
}

// call asks again while the API server begins anew. Every step may be repeated.
func (r *rotation) call(ctx context.Context, fn func(context.Context, hawserv1.MeshClient) error) error {
	for deadline := time.Now().Add(comeBack); ; {
		err := r.once(ctx, fn)
		if err == nil {
			r.stepping = true
		}
		if err == nil || !r.stepping || !away(err) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(rotatePoll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// away reports whether nobody answers at the moment.
func away(err error) bool {
	var e *session.Error
	return status.Code(err) == codes.Unavailable || errors.As(err, &e) && e.Code == session.CouldNotAsk
}

func (r *rotation) once(ctx context.Context, fn func(context.Context, hawserv1.MeshClient) error) error {
	client, conn, err := r.s.Mesh()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := r.s.Deadline(ctx)
	defer cancel()
	return fn(ctx, client)
}

func showCA(w io.Writer, r *hawserv1.CAStatusReport) error {
	fields := []string{"Phase", r.GetPhase()}
	for _, c := range r.GetCertificates() {
		name := "Believed"
		if c.GetSigns() {
			name = "Signs"
		}
		fields = append(fields, name, fmt.Sprintf("%s until %s", c.GetSha256()[:16], time.Unix(0, c.GetNotAfter()).UTC().Format(time.DateOnly)))
	}
	fields = append(fields, "Confirmed", or(strings.Join(r.GetConfirmed(), ", "), "nobody"), "Waiting", or(strings.Join(r.GetWaiting(), ", "), "nobody"))
	return printer.Fields(w, fields...)
}

func or(s, empty string) string {
	if s == "" {
		return empty
	}
	return s
}
