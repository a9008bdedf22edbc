// SPDX-License-Identifier: Apache-2.0

package rest

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// routes tells which methods a path has. A gateway does not say: this is another
// one of the same paths that calls nobody.
type routes struct {
	mute *runtime.ServeMux
}

func routesOf(ctx context.Context, socket string, register Register) (*routes, error) {
	nobody, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("list the REST paths: %w", err)
	}
	_ = nobody.Close() // each call fails at once
	r := &routes{mute: runtime.NewServeMux(runtime.WithRoutingErrorHandler(
		func(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, code int) {
			w.WriteHeader(code)
		}))}
	if err := register(ctx, r.mute, nobody); err != nil {
		return nil, fmt.Errorf("list the REST paths: %w", err)
	}
	return r, nil
}

// methods are those with which a request's path may be asked.
func (r *routes) methods(req *http.Request) []string {
	var out []string
	for _, m := range []string{http.MethodDelete, http.MethodGet, http.MethodPatch, http.MethodPost, http.MethodPut} {
		try := (&http.Request{Method: m, URL: req.URL, Header: http.Header{}, Body: http.NoBody}).WithContext(req.Context())
		answer := codeOf{http.Header{}, new(int)}
		if r.mute.ServeHTTP(answer, try); *answer.code != http.StatusMethodNotAllowed && *answer.code != http.StatusNotFound {
			out = append(out, m)
		}
	}
	return out
}

// codeOf keeps the code of an answer and nothing else.
type codeOf struct {
	header http.Header
	code   *int
}

func (c codeOf) Header() http.Header         { return c.header }
func (c codeOf) Write(b []byte) (int, error) { return len(b), nil }
func (c codeOf) WriteHeader(code int)        { *c.code = code }

// refuse answers a request that no path is for; it is a runtime.RoutingErrorHandlerFunc.
func (r *routes) refuse(ctx context.Context, mux *runtime.ServeMux, m runtime.Marshaler, w http.ResponseWriter, req *http.Request, code int) {
	if code != http.StatusMethodNotAllowed {
		runtime.DefaultRoutingErrorHandler(ctx, mux, m, w, req, code)
		return
	}
	allow := strings.Join(r.methods(req), ", ")
	w.Header().Set("Allow", allow)
	runtime.HTTPError(ctx, mux, m, w, req, &runtime.HTTPStatusError{
		HTTPStatus: code, Err: status.Errorf(codes.Unimplemented, "%s %s: this path is asked with %s", req.Method, req.URL.Path, allow),
	})
}
