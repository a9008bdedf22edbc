// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
)

// call is one request; it returns status and body.
func call(t *testing.T, c *http.Client, method, url, body string, header ...string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// browser is an HTTP client with the certificate of a role, if any.
func browser(t *testing.T, s *Server, role pki.Role, name string, http2 bool) *http.Client {
	t.Helper()
	cfg := &tls.Config{RootCAs: s.creds.ca.Pool(), MinVersion: tls.VersionTLS13}
	if role != "" {
		out := t.TempDir()
		if err := Issue(s.cfg.DataDir, role, name, out, time.Now()); err != nil {
			t.Fatal(err)
		}
		c, err := pki.FilesIn(out, "tls").Certificate()
		if err != nil {
			t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{c}
	}
	tr := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: http2}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func TestREST(t *testing.T) {
	s := startPort(t)
	base := "https://" + s.cfg.ListenAPI.String()
	for _, h2 := range []bool{false, true} {
		admin := browser(t, s, pki.RoleAdmin, "ada", h2)
		code, body := call(t, admin, http.MethodGet, base+"/v1/cluster/status", "")
		var status struct {
			Cluster   string `json:"cluster"`
			ClusterID uint32 `json:"clusterId"`
		}
		if err := json.Unmarshal([]byte(body), &status); err != nil || code != http.StatusOK || status.Cluster != "east" || status.ClusterID != 1 {
			t.Errorf("cluster status: %d %s", code, body)
		}
	}
	admin := browser(t, s, pki.RoleAdmin, "ada", true)
	apply, err := json.Marshal(map[string]string{"source": manifest("echo")})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ method, path, body, want string }{
		{http.MethodPost, "/v1/services", string(apply), `"created"`},
		{http.MethodGet, "/v1/services", "", `"echo"`},
		{http.MethodDelete, "/v1/services/demo/echo", "", `"deleted"`},
		{http.MethodPost, "/v1/nodes/n7/invite", "{}", `"hw1.`},
	} {
		if code, body := call(t, admin, c.method, base+c.path, c.body); code != http.StatusOK || !strings.Contains(body, c.want) {
			t.Errorf("%s %s: %d %s", c.method, c.path, code, body)
		}
	}
	if code, body := call(t, admin, http.MethodDelete, base+"/v1/services/demo/echo", ""); code != http.StatusNotFound || !strings.Contains(body, "no service") {
		t.Errorf("what is not there: %d %s", code, body)
	}
	if code, body := call(t, admin, http.MethodGet, base+"/v1/mesh/peers/nowhere/diff", ""); code != http.StatusNotFound || !strings.Contains(body, "no such peer") {
		t.Errorf("comparing with a peer that is none: %d %s", code, body)
	}
	if code, body := call(t, admin, http.MethodDelete, base+"/v1/mesh/peers/nowhere", ""); code != http.StatusNotFound || !strings.Contains(body, "no such peer") {
		t.Errorf("leaving a peer that is none: %d %s", code, body)
	}
	if code, body := call(t, admin, http.MethodPut, base+"/v1/mesh/peers/nowhere", ""); code != http.StatusMethodNotAllowed {
		t.Errorf("a wrong method: %d %s", code, body)
	}
	if code, _ := call(t, admin, http.MethodPost, base+"/v1/mesh/invite", "{}", "Sec-Fetch-Site", "cross-site"); code != http.StatusForbidden {
		t.Errorf("a browser on behalf of another site: %d", code)
	}
	if code, _ := call(t, admin, http.MethodPost, base+"/v1/services", `{"source":"`+strings.Repeat("x", 5<<20)+`"}`); code == http.StatusOK {
		t.Error("took 5 MiB")
	}
	for name, c := range map[string]struct {
		client *http.Client
		code   int
	}{
		"agent":      {browser(t, s, pki.RoleAgent, "n1", true), http.StatusForbidden},
		"API server": {browser(t, s, pki.RoleAPIServer, "", true), http.StatusForbidden},
		"nobody":     {browser(t, s, "", "", false), http.StatusUnauthorized},
	} {
		if code, body := call(t, c.client, http.MethodGet, base+"/v1/nodes", ""); code != c.code {
			t.Errorf("%s: %d %s", name, code, body)
		}
	}
}

func TestRESTOnTheSocket(t *testing.T) {
	s := startPort(t)
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.cfg.Socket)
	}}}
	defer c.CloseIdleConnections()
	if code, body := call(t, c, http.MethodGet, "http://hawser/v1/mesh/status", ""); code != http.StatusOK || !strings.Contains(body, `"east"`) {
		t.Errorf("mesh status: %d %s", code, body)
	}
}

// TestOpenAPIHasEveryCall holds the REST paths to the services.
func TestOpenAPIHasEveryCall(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", "api", "openapi", "hawser.swagger.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []grpc.ServiceDesc{hawserv1.Mesh_ServiceDesc, hawserv1.Node_ServiceDesc} {
		service := d.ServiceName[strings.LastIndexByte(d.ServiceName, '.')+1:]
		var names []string
		for _, m := range d.Methods {
			names = append(names, m.MethodName)
		}
		for _, st := range d.Streams {
			names = append(names, st.StreamName)
		}
		for _, n := range names {
			if !strings.Contains(string(raw), `"operationId": "`+service+"_"+n+`"`) {
				t.Errorf("%s.%s has no path: add it to api/openapi/rest.yaml and run make generate-proto", service, n)
			}
		}
	}
}
