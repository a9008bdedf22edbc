// SPDX-License-Identifier: Apache-2.0

// Package session is what every command shares: the global flags, the streams,
// the connections to agents and API servers, and the exit codes.
package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/clicontext"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/internal/pki"
)

// Exit codes.
const (
	Done        = 0
	No          = 1 // the answer is no: not ready, a check failed
	WrongUse    = 2
	CouldNotAsk = 3
)

// Error is an error with the exit code it ends the program with.
type Error struct {
	Code int
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Usage is wrong use of a command.
func Usage(format string, args ...any) error {
	return &Error{Code: WrongUse, Err: fmt.Errorf(format, args...)}
}

// Answer is the answer "no".
func Answer(format string, args ...any) error {
	return &Error{Code: No, Err: fmt.Errorf(format, args...)}
}

// Session holds the global flags. Its zero value is ready for Bind.
type Session struct {
	Context string
	Cluster string
	Node    string
	Output  printer.Format
	Quiet   bool
	Timeout time.Duration

	learned *learned
	warned  []string // what Warn has printed
}

// Bind adds the global flags to the root command.
func (s *Session) Bind(root *cobra.Command) {
	s.Output, s.learned = printer.Table, &learned{names: map[string]names{}}
	f := root.PersistentFlags()
	f.StringVar(&s.Context, "context", "", "context to use: a name, or a file (default: the current one, else this host)")
	f.StringVar(&s.Cluster, "cluster", "", "cluster to ask (default: the context's first)")
	f.StringVar(&s.Node, "node", "", "node to ask (default: all nodes of the cluster)")
	f.VarP(&s.Output, "output", "o", "output format")
	f.BoolVarP(&s.Quiet, "quiet", "q", false, "print results only")
	s.Timeout = 10 * time.Second
	f.Var((*positive)(&s.Timeout), "timeout", "longest time to wait for an answer")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	_ = root.RegisterFlagCompletionFunc("cluster", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return s.clusterNames(), cobra.ShellCompDirectiveNoFileComp
	})
	_ = root.RegisterFlagCompletionFunc("node", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return s.nodeNames(), cobra.ShellCompDirectiveNoFileComp
	})
}

// positive is a duration flag above zero.
type positive time.Duration

// Set implements pflag.Value.
func (p *positive) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil {
		return err
	}
	if d <= 0 {
		return errors.New("must be above zero")
	}
	*p = positive(d)
	return nil
}

// String implements pflag.Value.
func (p *positive) String() string { return time.Duration(*p).String() }

// Type implements pflag.Value.
func (p *positive) Type() string { return "duration" }

func (s *Session) clusterNames() []string {
	c, err := s.Load()
	if err != nil {
		return nil
	}
	var names []string
	for _, cl := range c.Clusters {
		names = append(names, cl.Name)
	}
	return names
}

func (s *Session) nodeNames() []string {
	var names []string
	if cl, err := s.Target(); err == nil {
		for _, n := range cl.Nodes {
			names = append(names, n.Name)
		}
	}
	return names
}

// Deadline is the context of one request.
func (s *Session) Deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.Timeout)
}

// Mesh connects to the API server of the target cluster. Close the connection
// when done.
func (s *Session) Mesh() (hawserv1.MeshClient, io.Closer, error) {
	cl, err := s.Target()
	if err != nil {
		return nil, nil, err
	}
	conn, err := dialMesh(cl)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", of("API server", "cluster", cl.Name), err)
	}
	return hawserv1.NewMeshClient(conn), conn, nil
}

// Ask puts one question to the API server of the target cluster, with the
// session's deadline: Ask(ctx, s, hawserv1.MeshClient.ListVTEPs, request).
func Ask[Q, R any](ctx context.Context, s *Session, call func(hawserv1.MeshClient, context.Context, *Q, ...grpc.CallOption) (*R, error), q *Q) (*R, error) {
	client, conn, err := s.Mesh()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := s.Deadline(ctx)
	defer cancel()
	return call(client, ctx, q)
}

// NodeConn is a connection to an agent.
type NodeConn struct {
	hawserv1.NodeClient
	Name string
	io.Closer
}

// Nodes connects to the target cluster's agents, or to the one that --node
// names. Agents that do not answer make an error only when all fail.
func (s *Session) Nodes() ([]NodeConn, error) {
	conns, problems, err := s.dialNodes()
	s.warnOf(problems)
	return conns, err
}

// dialNodes is Nodes, with what is wrong with agents beside those that answer.
func (s *Session) dialNodes() (conns []NodeConn, problems []error, err error) {
	cl, err := s.Target()
	if err != nil {
		return nil, nil, err
	}
	if len(cl.Nodes) == 0 {
		return nil, nil, &Error{Code: CouldNotAsk, Err: fmt.Errorf(
			"%w of cluster %q: what a node knows is asked on that node itself, over its socket", ErrNoAgents, cl.Name)}
	}
	for _, n := range cl.Nodes {
		if !n.Is(s.Node) {
			continue
		}
		conn, err := dial(n.Socket)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", of("agent", "node", n.Name), err))
			continue
		}
		conns = append(conns, NodeConn{hawserv1.NewNodeClient(conn), n.Name, conn})
	}
	if len(conns) == 0 {
		if len(problems) > 0 {
			return nil, nil, &Error{Code: CouldNotAsk, Err: errors.Join(problems...)}
		}
		return nil, nil, Usage("cluster %q has no node %q, there are: %s", cl.Name, s.Node, strings.Join(s.nodeNames(), ", "))
	}
	return conns, problems, nil
}

// Warn prints a warning on stderr, once.
func (s *Session) Warn(format string, args ...any) {
	w := plain(fmt.Sprintf(format, args...))
	if slices.Contains(s.warned, w) {
		return
	}
	s.warned = append(s.warned, w)
	fmt.Fprintf(os.Stderr, "warning: %s\n", w)
}

func (s *Session) warnOf(problems []error) {
	for _, p := range problems {
		s.Warn("%v", p)
	}
}

// share is which part of the time that is left one question of several gets: who
// does not answer must leave time to ask the others.
const share = 3

// part is the context of a question to an agent: with the session's deadline, or,
// where ctx has one for several questions, with a share of what is left. named
// turns the error of an agent that took longer into a sentence.
func (s *Session) part(ctx context.Context) (_ context.Context, cancel context.CancelFunc, named func(error) error) {
	patience := s.Timeout
	if end, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(end)/share)
	}
	own, cancel := context.WithTimeout(ctx, patience)
	end, _ := own.Deadline()
	return own, cancel, func(err error) error {
		// The agent knows the deadline, too, and may end the stream just before it.
		late := ExitCode(err) == CouldNotAsk && time.Until(end) < patience/10 ||
			err != nil && strings.Contains(err.Error(), "reading server preface") // connected by the kernel, and nobody is there
		if ctx.Err() == nil && late {
			return &Error{Code: CouldNotAsk, Err: fmt.Errorf("%w: it hangs, or --timeout %s is too short", ErrSilent, s.Timeout)}
		}
		return err
	}
}

// Gather asks all nodes at once and joins their rows in node order. A node that
// fails is a warning as long as another answers. When all fail the exit code is
// the highest of theirs. It takes --timeout at most, and a third of what is left
// of ctx's deadline.
func Gather[T any](ctx context.Context, s *Session, ask func(context.Context, NodeConn) ([]T, error)) ([]T, error) {
	rows, failed, err := gather(ctx, s, ask)
	s.warnOf(failed)
	return rows, err
}

// gather is Gather, with what failed of nodes beside those that answered.
func gather[T any](ctx context.Context, s *Session, ask func(context.Context, NodeConn) ([]T, error)) (all []T, failed []error, err error) {
	nodes, failed, err := s.dialNodes()
	if err != nil {
		return nil, nil, err
	}
	down := len(failed)
	rows := make([][]T, len(nodes))
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			defer func() { _ = n.Close() }()
			ctx, cancel, named := s.part(ctx)
			defer cancel()
			rows[i], errs[i] = ask(ctx, n)
			errs[i] = named(errs[i])
		})
	}
	wg.Wait()
	code := Done
	for i := range nodes {
		all = append(all, rows[i]...)
		if errs[i] != nil {
			failed = append(failed, fmt.Errorf("%s: %w", of("", "node", nodes[i].Name), errs[i]))
			code = max(code, ExitCode(errs[i]))
		}
	}
	if len(failed)-down == len(nodes) {
		return nil, failed[:down], &Error{Code: code, Err: errors.Join(failed[down:]...)}
	}
	return all, failed, nil
}

// maxMessage bounds a reply; listings of large meshes pass gRPC's default.
const maxMessage = 256 << 20

func dial(socket string) (*grpc.ClientConn, error) {
	// Looking first turns "connection refused" into a sentence.
	d := net.Dialer{Timeout: time.Second}
	probe, err := d.DialContext(context.Background(), "unix", socket)
	if err != nil {
		return nil, &Error{Code: CouldNotAsk, Err: explainSocket(socket, err)}
	}
	_ = probe.Close()
	return grpc.NewClient("unix:"+socket,
		// A program that restarts is back soon.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: time.Second,
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
}

func dialMesh(cl *clicontext.Cluster) (*grpc.ClientConn, error) {
	switch {
	case cl.Socket != "":
		return dial(cl.Socket)
	case cl.Address == "":
		return nil, &Error{Code: CouldNotAsk, Err: fmt.Errorf("%w; ask on its host, or as an administrator from here: hawser config add-context --help", ErrNoAPIServer)}
	}
	cfg, err := pki.FilesIn(cl.TLSDir, "tls").ClientTLS(&pki.ID{Cluster: cl.Name, Role: pki.RoleAPIServer})
	if err != nil {
		return nil, &Error{Code: CouldNotAsk, Err: fmt.Errorf("%w\nan administrator's certificate is made by: hawser-apiserver issue --admin USER --out DIR", err)}
	}
	return grpc.NewClient("passthrough:///"+cl.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(cfg)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
}

func explainSocket(socket string, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("there is no socket %s: it is not running on this host; start it, or try `make lab`, or choose --context", socket)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("no permission to open %s: run as root", socket)
	}
	return fmt.Errorf("nothing answers on %s: it is not running (%w)", socket, err)
}

// ExitCode is the code that an error ends the program with.
func ExitCode(err error) int {
	if err == nil {
		return Done
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return CouldNotAsk
	case codes.InvalidArgument:
		return WrongUse
	}
	return No
}

// Message is an error as it is shown: gRPC's wrapping is taken off, wherever it
// is.
func Message(err error) string { return plain(err.Error()) }

// plain takes gRPC's prefixes out of a text: also out of those that another
// program, or a log line, has quoted.
func plain(text string) string {
	code := regexp.MustCompile(`rpc error: code = (\S+) desc = ?`)
	dialling := regexp.MustCompile(`connection error: desc = "(?:transport: )?([^"\\]*)"`)
	text = dialling.ReplaceAllString(text, "$1")
	if out := strings.TrimSpace(code.ReplaceAllString(text, "")); out != "" {
		return out
	}
	// Without a message the code is all there is.
	return strings.TrimSpace(code.ReplaceAllString(text, "$1 "))
}

// AskNode puts one question to the agent that --node names, or to the first:
// AskNode(ctx, s, hawserv1.NodeClient.ListMaps, request). It has the session's
// deadline. Where ctx has one, the question is one of several: it gets a third of
// what is left, and an agent that does not answer is a warning, and the next is
// asked.
func AskNode[Q, R any](ctx context.Context, s *Session, call func(hawserv1.NodeClient, context.Context, *Q, ...grpc.CallOption) (*R, error), q *Q) (*R, error) {
	nodes, err := s.Nodes()
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		defer func() { _ = n.Close() }()
	}
	_, several := ctx.Deadline()
	for i, n := range nodes {
		if s.Node == "" && len(nodes) > 1 && s.Output == printer.Table && !s.Quiet {
			fmt.Fprintf(os.Stderr, "node %s (choose another with --node)\n", n.Name)
		}
		r, err := askOne(ctx, s, n, call, q)
		if err == nil || !several || i+1 == len(nodes) || ExitCode(err) != CouldNotAsk {
			return r, err
		}
		s.Warn("%v", err)
	}
	return nil, nil // Nodes gives one at the least
}

func askOne[Q, R any](ctx context.Context, s *Session, n NodeConn, call func(hawserv1.NodeClient, context.Context, *Q, ...grpc.CallOption) (*R, error), q *Q) (*R, error) {
	ctx, cancel, named := s.part(ctx)
	defer cancel()
	r, err := call(n.NodeClient, ctx, q)
	if err = named(err); err != nil {
		return nil, fmt.Errorf("%s: %w", of("", "node", n.Name), err)
	}
	return r, nil
}

// AllNodes connects to the agents of every cluster of the context, unless
// --cluster or --node narrows it.
func (s *Session) AllNodes() ([]NodeConn, error) {
	if s.Cluster != "" || s.Node != "" {
		return s.Nodes()
	}
	c, err := s.Load()
	if err != nil {
		return nil, err
	}
	var all []NodeConn
	var failed []error
	for _, cl := range c.Clusters {
		one := *s
		one.Cluster = cl.Name
		nodes, err := one.Nodes()
		if err != nil {
			failed = append(failed, err)
			continue
		}
		all = append(all, nodes...)
	}
	if len(all) == 0 {
		return nil, &Error{Code: CouldNotAsk, Err: errors.Join(failed...)}
	}
	for _, f := range failed {
		s.Warn("%v", f)
	}
	return all, nil
}

// Exit ends the program with a code and says nothing: the command that ran
// inside has said all there is.
type Exit struct{ Code int }

func (e *Exit) Error() string { return fmt.Sprintf("exit code %d", e.Code) }
