// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/observe/metrics"
)

// ReadKernel implements hawserv1.NodeServer.
func (s *service) ReadKernel(context.Context, *hawserv1.ReadKernelRequest) (*hawserv1.KernelReport, error) {
	r, err := netdev.ReadReport()
	out := &hawserv1.KernelReport{}
	if err != nil {
		out.Problems = strings.Split(err.Error(), "\n")
	}
	for _, l := range r.Links {
		out.Links = append(out.Links, &hawserv1.KernelLink{
			Name: l.Name, Type: l.Type, Index: uint32(l.Index), Mtu: uint32(l.MTU), Mac: l.MAC, State: l.State, Flags: l.Flags,
			Addresses: l.Addresses, Programs: append(loader.ProgramsAt(l.Index), l.Filters...),
		})
	}
	for _, p := range r.Routes {
		out.Routes = append(out.Routes, &hawserv1.KernelRoute{
			Destination: p.Destination, Gateway: p.Gateway, Device: p.Device, Source: p.Source, Table: uint32(p.Table), Protocol: uint32(p.Protocol), Type: p.Type,
		})
	}
	return out, nil
}

// ReadMetrics implements hawserv1.NodeServer.
func (s *service) ReadMetrics(context.Context, *hawserv1.ReadMetricsRequest) (*hawserv1.MetricsText, error) {
	text, err := metrics.Text(metrics.NewCollector(Metrics(), s.a.metricsSource(), s.a.log, s.a.timers.kept()...))
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &hawserv1.MetricsText{Text: text}, nil
}
