// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/internal/testutil/played"
)

type leaves struct {
	hawserv1.UnimplementedMeshServer
}

func (leaves) Describe(context.Context, *hawserv1.DescribeRequest) (*hawserv1.ClusterDescription, error) {
	return &hawserv1.ClusterDescription{Cluster: "east"}, nil
}

func (leaves) Leave(context.Context, *hawserv1.LeaveRequest) (*hawserv1.LeaveResponse, error) {
	return &hawserv1.LeaveResponse{}, nil
}

// What the other side is to type names this cluster, also where the context does
// not.
func TestLeaveNamesTheOtherSidesCommand(t *testing.T) {
	socket := played.Socket(t)
	played.APIServer(t, socket, leaves{})
	cmd := New(&session.Session{Context: played.Context(t, "", socket), Timeout: 5 * time.Second, Output: printer.Table})
	cmd.SetArgs([]string{"leave", "west"})
	var out bytes.Buffer
	cmd.SetOut(&out)
	if err := cmd.ExecuteContext(t.Context()); err != nil || !strings.HasSuffix(out.String(), "there:  hawser mesh leave east\n") {
		t.Errorf("%v: %s", err, out.String())
	}
}
