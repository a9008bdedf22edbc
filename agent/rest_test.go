// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/emptypb"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/rest"
	"github.com/hawser-mesh/hawser/internal/unixsocket"
)

// asked is a call as it came through the gateway.
type asked struct{ method, request string }

// playNode serves the node API's REST paths as an agent does, in front of a
// service that takes every call and answers all of them the same: with an empty
// message, or with fail.
func playNode(t *testing.T, calls chan<- asked, fail error) *http.Client {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	socket := filepath.Join(t.TempDir(), "agent.sock")
	lis, err := unixsocket.Listen(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	api := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		name, _ := grpc.MethodFromServerStream(stream)
		m := nodeMethods().ByName(protoreflect.Name(filepath.Base(name)))
		raw, in := &emptypb.Empty{}, dynamicpb.NewMessage(m.Input())
		if err := stream.RecvMsg(raw); err != nil {
			return err
		}
		b, err := proto.Marshal(raw)
		if err = errors.Join(err, proto.Unmarshal(b, in)); err != nil {
			return err
		}
		calls <- asked{string(m.Name()), compact(in)}
		if fail != nil {
			return fail
		}
		return stream.SendMsg(dynamicpb.NewMessage(m.Output()))
	}))
	web, err := rest.Gateway(ctx, socket, hawserv1.RegisterNodeHandler)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- rest.Serve(lis, api, web) }()
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	t.Cleanup(func() {
		c.CloseIdleConnections()
		api.Stop()
		cancel()
		<-done
	})
	return c
}

func nodeMethods() protoreflect.MethodDescriptors {
	return hawserv1.File_api_hawser_v1_node_proto.Services().ByName("Node").Methods()
}

// compact is a message as JSON without spaces, which differ from run to run.
func compact(m proto.Message) string {
	b, err := protojson.Marshal(m)
	if err != nil {
		return err.Error()
	}
	return strings.ReplaceAll(string(b), " ", "")
}

func request(t *testing.T, c *http.Client, method, path, body string) (code int, kind string, got map[string]any) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://hawser"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Errorf("%s %s: %q is no JSON object: %v", method, path, raw, err)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), got
}

type nodeRoute struct{ method, path, body, request, field string }

// nodeRoutes are the REST paths of an agent, by call: what is asked, what the
// call gets, and a field of the answer.
func nodeRoutes() map[string]nodeRoute {
	return map[string]nodeRoute{
		"Status":         {http.MethodGet, "/v1/node/status", "", `{}`, "node"},
		"AddEndpoint":    {http.MethodPost, "/v1/node/endpoints", `{"containerId":"c1","ifname":"eth0"}`, `{"containerId":"c1","ifname":"eth0"}`, "endpoint"},
		"DeleteEndpoint": {http.MethodDelete, "/v1/node/endpoints/c1/eth0", "", `{"containerId":"c1","ifname":"eth0"}`, ""},
		"SetEndpoint":    {http.MethodPut, "/v1/node/endpoints/7", `{}`, `{"id":7}`, "endpoint"},
		"ListEndpoints":  {http.MethodGet, "/v1/node/endpoints", "", `{}`, "endpoints"},
		"ListIPCache":    {http.MethodGet, "/v1/node/ipcache", "", `{}`, "entries"},
		"ListMaps":       {http.MethodGet, "/v1/node/maps", "", `{}`, "maps"},
		"ListDrops":      {http.MethodGet, "/v1/node/drops", "", `{}`, "drops"},
		"ListFrontends":  {http.MethodGet, "/v1/node/frontends", "", `{}`, "frontends"},
		"ListRules":      {http.MethodGet, "/v1/node/rules?endpoint_id=7", "", `{"endpointId":7}`, "entries"},
		"ListPaths":      {http.MethodGet, "/v1/node/paths", "", `{}`, "paths"},
		"ReadKernel":     {http.MethodGet, "/v1/node/kernel", "", `{}`, "links"},
		"ReadMetrics":    {http.MethodGet, "/v1/node/metrics", "", `{}`, "text"},
		"Monitor":        {http.MethodGet, "/v1/node/events?types=drop", "", `{"types":["drop"]}`, "result"},
	}
}

// Every call of an agent is reached by its REST path, with what the path, the
// query and the body say, and is answered with JSON that has its fields.
func TestNodeRoutes(t *testing.T) {
	calls := make(chan asked, 1)
	c, routes := playNode(t, calls, nil), nodeRoutes()
	for i := range nodeMethods().Len() {
		name := string(nodeMethods().Get(i).Name())
		r, ok := routes[name]
		if !ok {
			t.Errorf("no path of %s is tried", name)
			continue
		}
		code, kind, got := request(t, c, r.method, r.path, r.body)
		if code != http.StatusOK || kind != "application/json" {
			t.Errorf("%s %s: %d, %s", r.method, r.path, code, kind)
			continue
		}
		if a := <-calls; a != (asked{name, r.request}) {
			t.Errorf("%s %s: asked %s %s, want %s %s", r.method, r.path, a.method, a.request, name, r.request)
		}
		if _, has := got[r.field]; !has && r.field != "" {
			t.Errorf("%s %s: no %s in %v", r.method, r.path, r.field, got)
		}
	}
}

// What a call is refused for becomes a status of HTTP and a message; what is no
// path of the API asks nobody.
func TestNodeRouteErrors(t *testing.T) {
	for code, want := range map[codes.Code]int{
		codes.InvalidArgument: http.StatusBadRequest, codes.NotFound: http.StatusNotFound, codes.Unavailable: http.StatusServiceUnavailable,
		codes.FailedPrecondition: http.StatusBadRequest, codes.Internal: http.StatusInternalServerError,
	} {
		calls := make(chan asked, 1)
		c := playNode(t, calls, status.Error(code, "no endpoint 7 on node n1"))
		is, _, got := request(t, c, http.MethodGet, "/v1/node/rules?endpoint_id=7", "")
		if is != want || got["message"] != "no endpoint 7 on node n1" || got["code"] != float64(code) {
			t.Errorf("%s: %d %v, want %d", code, is, got, want)
		}
	}
	calls := make(chan asked)
	c := playNode(t, calls, nil)
	for _, r := range []struct {
		method, path, body string
		want               int
	}{
		{http.MethodGet, "/v1/node/nothing", "", http.StatusNotFound},
		{http.MethodPut, "/v1/node/status", "", http.StatusMethodNotAllowed},
		{http.MethodPut, "/v1/node/endpoints/seven", "{}", http.StatusBadRequest},
		{http.MethodPost, "/v1/node/endpoints", `{"containerId":`, http.StatusBadRequest},
	} {
		if code, _, got := request(t, c, r.method, r.path, r.body); code != r.want || got["message"] == "" {
			t.Errorf("%s %s: %d %v, want %d", r.method, r.path, code, got, r.want)
		}
	}
}
