// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"net"
	"strings"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

// servedRow is a backend with the service's port that it serves.
type servedRow struct {
	*hawserv1.FrontendBackend
	port, name, backend string
}

// served are the backends of each of the service's ports, in their order: those
// with the port's name and protocol. A port without backends has a row that says
// so; backends of no port come last.
func served(r *hawserv1.ServiceInfo) (rows []servedRow) {
	if len(r.GetBackends()) == 0 {
		return nil
	}
	said := r.GetBackends()[0].GetProtocol() != "" // API servers before that was told do not
	taken := map[*hawserv1.FrontendBackend]bool{}
	for _, p := range r.GetPorts() {
		n := len(rows)
		for _, b := range r.GetBackends() {
			if b.GetPortName() == p.GetName() && b.GetProtocol() == p.GetProtocol() {
				taken[b] = true
				rows = append(rows, servedRow{b, portText(p.GetPort(), p.GetProtocol()), p.GetName(), addressOf(b)})
			}
		}
		if said && len(rows) == n {
			rows = append(rows, servedRow{nil, portText(p.GetPort(), p.GetProtocol()), p.GetName(), "none"})
		}
	}
	for _, b := range r.GetBackends() {
		if taken[b] {
			continue
		}
		row := servedRow{b, "", b.GetPortName(), addressOf(b)}
		if said {
			row.port = "none of " + strings.ToUpper(b.GetProtocol())
		}
		rows = append(rows, row)
	}
	return rows
}

func addressOf(b *hawserv1.FrontendBackend) string {
	return net.JoinHostPort(b.GetIp(), fmt.Sprint(b.GetPort()))
}

func portText(port uint32, protocol string) string {
	return fmt.Sprintf("%d/%s", port, strings.ToUpper(protocol))
}
