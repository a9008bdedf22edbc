// SPDX-License-Identifier: Apache-2.0

// Package etcd is the store behind the keyspace: Client, which implements
// kvstore.Client over an etcd connection, and Server, an etcd member inside the
// process with the users and roles of the access table.
//
// Start with client.go, then watch.go; server.go and access.go are the server's
// side. It is the only importer of etcd's client and server. Out of scope: what
// the keys mean (kvstore), typed views (kvstore/store).
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hawser-mesh/hawser/internal/tlsgrpc"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	defaultTimeout = 5 * time.Second
	maxTxnOps      = 128
	maxRequest     = 2 << 20

	backoffMin = 100 * time.Millisecond
	backoffMax = 5 * time.Second

	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 3 * time.Second

	// Bytes that may be on their way: a page of a listing or the events of a
	// watch to a client, a transaction to a server.
	clientWindow = 4 << 20
	serverWindow = 2 << 20
)

// ClientConfig is how to reach an etcd.
type ClientConfig struct {
	// Endpoints are host:port or https:// URLs of the members.
	Endpoints []string
	// TLS carries the client's certificate, whose common name is its user.
	TLS *tls.Config
	// Timeout bounds each call; 0 means 5 s. Watches are not bounded.
	Timeout time.Duration
	// Observe is told of each operation that ended: get, list, transaction, grant
	// or watch, a word for how, and how long it took. It must not block; nil
	// tells nobody.
	Observe func(operation, result string, took time.Duration)
	Log     *slog.Logger
}

// Client implements kvstore.Client. The connection is made in the background
// and made again whenever it breaks, after 100 ms to 5 s with jitter.
type Client struct {
	etcd     *clientv3.Client
	kv       pb.KVClient // of etcd
	timeout  time.Duration
	endpoint string
	cause    *lastError
	progress asker
	observe  func(operation, result string, took time.Duration)
}

// lastError is why the newest attempt of a call failed. etcd's client tries
// again until the deadline and then says no more than that it has passed.
type lastError struct{ err atomic.Pointer[error] }

func (l *lastError) intercept(ctx context.Context, method string, req, reply any,
	cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	err := invoke(ctx, method, req, reply, cc, opts...)
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		l.err.Store(&err)
	default:
		l.err.Store(nil)
	}
	return err
}

func (l *lastError) String() string {
	if err := l.err.Load(); err != nil {
		return status.Convert(*err).Message()
	}
	return "it did not respond"
}

var _ kvstore.Client = (*Client)(nil)

// NewClient returns a client at once, without waiting for a connection. The
// caller closes it.
func NewClient(cfg ClientConfig) (*Client, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("connect etcd: no endpoints")
	}
	if cfg.TLS == nil {
		return nil, errors.New("connect etcd: no TLS configuration; the keyspace is served over mutual TLS only")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	eps := make([]string, len(cfg.Endpoints))
	for i, e := range cfg.Endpoints {
		eps[i] = asURL(e)
	}
	cause := &lastError{}
	c, err := clientv3.New(clientv3.Config{
		Endpoints:            eps,
		TLS:                  cfg.TLS,
		DialTimeout:          cfg.Timeout,
		DialKeepAliveTime:    keepaliveTime,
		DialKeepAliveTimeout: keepaliveTimeout,
		BackoffWaitBetween:   backoffMin,
		Logger:               zapLogger(cfg.Log),
		DialOptions: append(tlsgrpc.ClientWindows(clientWindow), grpc.WithChainUnaryInterceptor(cause.intercept), callDefaults(), grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: backoffMin, Multiplier: 1.6, Jitter: 0.2, MaxDelay: backoffMax,
			},
			MinConnectTimeout: cfg.Timeout,
		})),
	})
	if err != nil {
		return nil, fmt.Errorf("connect etcd %s: %w", strings.Join(eps, ","), err)
	}
	if cfg.Observe == nil {
		cfg.Observe = func(string, string, time.Duration) {}
	}
	return &Client{etcd: c, kv: clientv3.RetryKVClient(c), timeout: cfg.Timeout, endpoint: strings.Join(eps, ","), cause: cause, observe: cfg.Observe}, nil
}

func asURL(endpoint string) string {
	if strings.Contains(endpoint, "://") {
		return endpoint
	}
	return "https://" + endpoint
}

// HostOf is the host of an endpoint in a form that ClientConfig takes: an address
// without brackets, or a name; empty when there is none.
func HostOf(endpoint string) string {
	u, err := url.Parse(asURL(endpoint))
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// callDefaults are the options that etcd's client gives each of its calls.
func callDefaults() grpc.DialOption {
	return grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallSendMsgSize(maxRequest), grpc.MaxCallRecvMsgSize(math.MaxInt32))
}

// Endpoint implements kvstore.Client.
func (c *Client) Endpoint() string { return c.endpoint }

// Close implements kvstore.Client.
func (c *Client) Close() error {
	if err := c.etcd.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close etcd client: %w", err)
	}
	return nil
}

// Get implements kvstore.Client.
func (c *Client) Get(ctx context.Context, key string) (_ *kvstore.KV, _ int64, err error) {
	defer c.ended("get", time.Now(), &err)
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	r, err := c.etcd.Get(ctx, key)
	if err != nil {
		return nil, 0, c.wrap("get", key, err)
	}
	if len(r.Kvs) == 0 {
		return nil, r.Header.Revision, nil
	}
	kv := fromKV(r.Kvs[0])
	return &kv, r.Header.Revision, nil
}

// List implements kvstore.Client.
func (c *Client) List(ctx context.Context, prefix, after string, limit, rev int64) (_ kvstore.Page, err error) {
	defer c.ended("list", time.Now(), &err)
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	from := prefix
	if after != "" {
		if !strings.HasPrefix(after, prefix) {
			return kvstore.Page{}, fmt.Errorf("list %s: %s is not below it", prefix, after)
		}
		from = after + "\x00"
	}
	opts := []clientv3.OpOption{
		clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)),
		clientv3.WithLimit(limit),
	}
	if rev > 0 {
		opts = append(opts, clientv3.WithRev(rev))
	}
	r, err := c.etcd.Get(ctx, from, opts...)
	if err != nil {
		return kvstore.Page{}, c.wrap("list", prefix, err)
	}
	p := kvstore.Page{Revision: r.Header.Revision, More: r.More, KVs: make([]kvstore.KV, len(r.Kvs))}
	if rev > 0 {
		p.Revision = rev
	}
	for i, kv := range r.Kvs {
		p.KVs[i] = fromKV(kv)
	}
	return p, nil
}

// Txn implements kvstore.Client.
func (c *Client) Txn(ctx context.Context, cmps []kvstore.Cmp, thens, elses []kvstore.Op) (kvstore.TxnResult, error) {
	key := txnKey(cmps, thens, elses)
	for _, n := range []int{len(cmps), len(thens), len(elses)} {
		if n > maxTxnOps {
			return kvstore.TxnResult{}, fmt.Errorf("transaction on %s: %d operations, at most %d are allowed", key, n, maxTxnOps)
		}
	}
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	r, err := c.kv.Txn(ctx, toTxn(cmps, thens, elses))
	if err != nil {
		err = c.wrap("transaction on", key, clientv3.ContextError(ctx, err))
		c.ended("transaction", begun, &err)
		return kvstore.TxnResult{}, err
	}
	c.observe("transaction", txnResult(r.Succeeded), time.Since(begun))
	res := kvstore.TxnResult{Succeeded: r.Succeeded, Revision: r.Header.Revision}
	for _, resp := range r.Responses {
		g := resp.GetResponseRange()
		if g == nil {
			continue
		}
		kvs := make([]kvstore.KV, len(g.Kvs))
		for i, kv := range g.Kvs {
			kvs[i] = fromKV(kv)
		}
		res.Gets = append(res.Gets, kvs)
	}
	return res, nil
}

// txnKey names a transaction in errors by the first key it is about.
func txnKey(cmps []kvstore.Cmp, thens, elses []kvstore.Op) string {
	switch {
	case len(thens) > 0:
		return thens[0].Key
	case len(cmps) > 0:
		return cmps[0].Key
	case len(elses) > 0:
		return elses[0].Key
	}
	return "nothing"
}

// Grant implements kvstore.Client. The lease outlives the context by up to its
// ttl: nothing revokes it.
func (c *Client) Grant(ctx context.Context, ttl int64) (_ kvstore.Lease, _ <-chan struct{}, err error) {
	defer c.ended("grant", time.Now(), &err)
	gctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	g, err := c.etcd.Grant(gctx, ttl)
	if err != nil {
		return 0, nil, c.wrap("grant lease of", fmt.Sprintf("%d s", ttl), err)
	}
	alive, err := c.etcd.KeepAlive(ctx, g.ID)
	if err != nil {
		return 0, nil, c.wrap("keep alive lease", fmt.Sprintf("%x", g.ID), err)
	}
	done := make(chan struct{})
	go func() { // ends with the context, the lease or the client
		defer close(done)
		for range alive { //nolint:revive // each answer renews the lease; nothing else to do
		}
	}()
	return kvstore.Lease(g.ID), done, nil
}

// wrap names operation and key, and turns what callers branch on into the
// sentinels of kvstore.
func (c *Client) wrap(op, key string, err error) error {
	return fmt.Errorf("%s %s: %w", op, key, c.mapError(err))
}

func (c *Client) mapError(err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return kvstore.ErrCompacted
	case errors.Is(err, rpctypes.ErrFutureRev):
		return kvstore.ErrFutureRevision
	case errors.Is(err, rpctypes.ErrPermissionDenied), errors.Is(err, rpctypes.ErrUserEmpty),
		errors.Is(err, rpctypes.ErrUserNotFound), errors.Is(err, rpctypes.ErrAuthFailed):
		return kvstore.ErrDenied
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%w (%w)", kvstore.ErrNoSpace, err)
	case errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.DeadlineExceeded:
		return fmt.Errorf("no answer from %s (%s): %w", c.endpoint, c.cause, context.DeadlineExceeded)
	}
	return err
}
