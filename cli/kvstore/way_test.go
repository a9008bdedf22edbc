// SPDX-License-Identifier: Apache-2.0

package kvstore_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/clustermesh/apiserver"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/apitest"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/internal/testutil/played"
)

// written is a context in a file.
func written(t *testing.T, cluster string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte("name: c\nclusters: [{"+cluster+"}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Nobody need say where an API server's own etcd is, nor have a certificate for it
// on that host; an administrator elsewhere has one.
func TestEtcdOfTheAPIServer(t *testing.T) {
	cfg := apitest.Run(t)
	admin := t.TempDir()
	if err := apiserver.Issue(cfg.DataDir, pki.RoleAdmin, "ada", admin, time.Now()); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]string{
		"host":   written(t, "socket: "+cfg.Socket),
		"remote": written(t, fmt.Sprintf("name: east, address: '%s', tlsDir: %s", cfg.ListenAPI, admin)),
	} {
		r := &rig{context: c}
		out, errs, code := r.run(t, "", "get", "state/east/cluster")
		if code != session.Done || !strings.Contains(out, "id: 1") {
			t.Errorf("%s: exit code %d: %s%s", name, code, out, errs)
		}
		if _, errs, code = r.run(t, "", "put", "state/east/vteps/10.1.200.0%2F24", "{prefix: 10.1.200.0/24, tunnel_address: 192.168.1.9}", "--write"); code != session.Done {
			t.Errorf("%s: put: exit code %d: %s", name, code, errs)
		}
		// An administrator, no less and no more.
		if _, errs, code = r.run(t, "", "ls", "private/east"); code != session.Done {
			t.Errorf("%s: of this cluster: exit code %d: %s", name, code, errs)
		}
		if _, errs, code = r.run(t, "", "ls", "private/west"); code != session.No || !strings.Contains(errs, "an administrator of east may read") {
			t.Errorf("%s: of another cluster: exit code %d: %s", name, code, errs)
		}
	}
}

type describes struct {
	hawserv1.UnimplementedMeshServer
	*hawserv1.ClusterDescription
}

func (d describes) Describe(context.Context, *hawserv1.DescribeRequest) (*hawserv1.ClusterDescription, error) {
	return d.ClusterDescription, nil
}

// What stands in the way to etcd is said, with what to do about it.
func TestNoWayToEtcd(t *testing.T) {
	e := etcdtest.Start(t)
	external, empty := t.TempDir(), t.TempDir()
	leaf, err := e.CA.Issue(pki.Request{Role: pki.RoleAPIServer}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Save(external, "tls"); err != nil {
		t.Fatal(err)
	}
	endpoints := []string{"https://" + e.Server.Endpoint()}
	for name, c := range map[string]struct {
		*hawserv1.ClusterDescription
		code int
		says string
	}{
		"external": {&hawserv1.ClusterDescription{Cluster: e.Cluster, EtcdMode: "external", EtcdEndpoints: endpoints, EtcdTlsDir: external}, session.Done, ""},
		"other files": {&hawserv1.ClusterDescription{Cluster: e.Cluster, EtcdMode: "embedded", EtcdEndpoints: endpoints, PkiDir: empty},
			session.CouldNotAsk, "the API server sees other files; use an administrator's certificate: hawser config add-context"},
	} {
		socket := played.Socket(t)
		played.APIServer(t, socket, describes{ClusterDescription: c.ClusterDescription})
		r := &rig{context: played.Context(t, "", socket)}
		if _, errs, code := r.run(t, "", "ls"); code != c.code || !strings.Contains(errs, c.says) {
			t.Errorf("%s: exit code %d: %s", name, code, errs)
		}
	}
	r := &rig{context: written(t, "socket: /nowhere/api.sock")}
	if _, errs, code := r.run(t, "", "ls"); code != session.CouldNotAsk || !strings.Contains(errs, "there is no socket /nowhere/api.sock") {
		t.Errorf("no API server: exit code %d: %s", code, errs)
	}
}
