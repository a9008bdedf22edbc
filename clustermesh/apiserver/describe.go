// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"path/filepath"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/version"
)

// Describe says who this API server is and where its keys are. It asks etcd
// nothing, so that it answers when etcd does not.
func (s *Server) Describe(context.Context, *hawserv1.DescribeRequest) (*hawserv1.ClusterDescription, error) {
	dir, err := filepath.Abs(PKIDir(s.cfg.DataDir))
	if err != nil {
		return nil, apiError(err)
	}
	return &hawserv1.ClusterDescription{
		Cluster: s.cfg.Cluster, ClusterId: s.cfg.ClusterID, Version: version.String(), PkiDir: dir,
		EtcdMode: s.cfg.Etcd.mode(), EtcdEndpoints: s.etcdEndpoints(), EtcdTlsDir: s.cfg.Etcd.TLSDir,
		KubeApiservers: texts(s.cfg.KubeAPIServers),
	}, nil
}
