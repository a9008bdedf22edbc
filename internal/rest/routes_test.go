// SPDX-License-Identifier: Apache-2.0

package rest

import (
	"context"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

// A path that is asked with a wrong method says with which it may be asked, one
// that does not exist that; neither calls anybody.
func TestWrongMethod(t *testing.T) {
	h, err := Gateway(t.Context(), filepath.Join(t.TempDir(), "nobody.sock"), func(ctx context.Context, mux *runtime.ServeMux, c *grpc.ClientConn) error {
		return hawserv1.RegisterMeshHandler(ctx, mux, c)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		method, path string
		code         int
		allow        string
	}{
		{http.MethodPut, "/v1/mesh/peers/west", http.StatusMethodNotAllowed, "DELETE, PATCH"},
		{http.MethodPut, "/v1/services", http.StatusMethodNotAllowed, "GET, POST"},
		{http.MethodGet, "/v1/mesh/invite", http.StatusMethodNotAllowed, "POST"},
		{http.MethodGet, "/v1/nonsense", http.StatusNotFound, ""},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), c.method, c.path, http.NoBody))
		if w.Code != c.code || w.Header().Get("Allow") != c.allow || !strings.Contains(w.Body.String(), `"message"`) {
			t.Errorf("%s %s: %d, Allow %q, %s; want %d, Allow %q", c.method, c.path, w.Code, w.Header().Get("Allow"), w.Body, c.code, c.allow)
		}
	}
}
