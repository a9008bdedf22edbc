// SPDX-License-Identifier: Apache-2.0

package status

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/internal/testutil/played"
)

type (
	cluster struct {
		hawserv1.UnimplementedMeshServer
	}
	node struct {
		hawserv1.UnimplementedNodeServer
	}
)

func (cluster) ClusterStatus(context.Context, *hawserv1.ClusterStatusRequest) (*hawserv1.ClusterStatusReport, error) {
	return &hawserv1.ClusterStatusReport{Cluster: "east"}, nil
}

func (node) Status(context.Context, *hawserv1.StatusRequest) (*hawserv1.NodeStatusReport, error) {
	return &hawserv1.NodeStatusReport{Cluster: "east", Node: "n1", Keyspace: &hawserv1.KeyspaceStatus{Connected: true}}, nil
}

func ask(t *testing.T, file string, f printer.Format) (code int, out string) {
	t.Helper()
	cmd := New(&session.Session{Context: file, Output: f, Timeout: 5 * time.Second})
	cmd.SetArgs(nil)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var b bytes.Buffer
	cmd.SetOut(&b)
	return session.ExitCode(cmd.ExecuteContext(t.Context())), b.String()
}

// Who does not answer is a problem, and the JSON says why; whom the context does
// not have, as that of a remote API server, is none.
func TestWhoIsMissing(t *testing.T) {
	api, agent := played.Socket(t), played.Socket(t)
	played.APIServer(t, api, cluster{})
	played.Agent(t, agent, node{})
	const gone = "/nowhere/socket"
	for name, c := range map[string]struct {
		file        string
		code        int
		key, says   string // in the JSON
		table       string
		hasCluster  bool
		nodesListed int
	}{
		"all answer":      {played.Context(t, "east", api, "n1", agent), session.Done, "", "", "n1 ", true, 1},
		"no agents named": {played.Context(t, "east", api), session.Done, "notAsked", "names no agents", "Nodes:       not asked", true, 0},
		"API server down": {played.Context(t, "east", gone, "n1", agent), session.No, "clusterError", "no socket " + gone, "API server:  ✗", false, 1},
		"agents down":     {played.Context(t, "east", api, "n1", gone), session.No, "nodesError", "no socket " + gone, "Nodes:       ✗", true, 0},
		"nobody":          {played.Context(t, "east", gone, "n1", gone), session.CouldNotAsk, "", "", "", false, 0},
		"nobody, none":    {played.Context(t, "east", gone), session.CouldNotAsk, "", "", "", false, 0},
	} {
		code, table := ask(t, c.file, printer.Table)
		if code != c.code || !strings.Contains(table, c.table) {
			t.Errorf("%s: exit code %d, want %d: %s", name, code, c.code, table)
		}
		if c.code == session.CouldNotAsk {
			continue
		}
		code, text := ask(t, c.file, printer.JSON)
		var got map[string]any
		if err := json.Unmarshal([]byte(text), &got); err != nil || code != c.code {
			t.Fatalf("%s: exit code %d, %v: %s", name, code, err, text)
		}
		for _, key := range []string{"notAsked", "clusterError", "nodesError"} {
			said, ok := got[key].(string)
			if ok != (key == c.key) || ok && !strings.Contains(said, c.says) {
				t.Errorf("%s: %s is %q", name, key, said)
			}
		}
		if nodes, _ := got["nodes"].([]any); len(nodes) != c.nodesListed || (got["cluster"] != nil) != c.hasCluster {
			t.Errorf("%s: %s", name, text)
		}
	}
}
