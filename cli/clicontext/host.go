// SPDX-License-Identifier: Apache-2.0

package clicontext

import (
	"errors"
	"os"
)

// Default places on a host.
const (
	DefaultAgentSocket     = "/run/hawser/agent.sock"
	DefaultAPIServerSocket = "/run/hawser/apiserver.sock"

	// What a program leaves behind while it does not run.
	agentCertificate = "/etc/hawser/tls/tls.crt"
	apiServerCA      = "/var/lib/hawser/pki/ca.key"
)

// host is this host: its own agent and API server, whose names they say
// themselves.
func host() *Context {
	return hostWith(DefaultAPIServerSocket, apiServerCA, DefaultAgentSocket, agentCertificate)
}

// hostWith is a host with these sockets. A program of which there is no socket and
// no trace does not belong to it, if the other one does.
func hostWith(apiServer, apiServerTrace, agent, agentTrace string) *Context {
	cl := Cluster{Socket: apiServer, Nodes: []Node{{Socket: agent}}}
	isAPIServer, isNode := anyOf(apiServer, apiServerTrace), anyOf(agent, agentTrace)
	switch {
	case isAPIServer && !isNode:
		cl.Nodes = nil
	case isNode && !isAPIServer:
		cl.Socket = ""
	}
	return &Context{Name: hostName, Clusters: []Cluster{cl}}
}

// anyOf reports whether there is one of these files, or may be.
func anyOf(paths ...string) bool {
	for _, p := range paths {
		if _, err := os.Stat(p); !errors.Is(err, os.ErrNotExist) {
			return true
		}
	}
	return false
}
