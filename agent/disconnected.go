// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strings"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// disconnected tells why the keyspace is not connected, and what helps. What the
// store's client says arrives as text only.
func disconnected(k *hawserv1.KeyspaceStatus, node string, enrolled bool) *hawserv1.Problem {
	again := "enrol the node again: hawser node invite " + node + ", and there hawser-agent --join @FILE with that token; do not forget it, as its workloads run"
	p := &hawserv1.Problem{Object: "keyspace " + k.GetEndpoint()}
	const meanwhile = "; traffic goes on with what was known"
	says := k.GetLastError()
	switch {
	case strings.Contains(says, kvstore.ErrDenied.Error()) && enrolled:
		p.Problem = "this node's key is not admitted any more: the node was forgotten, or another host was invited under its name (" + says + ")" + meanwhile
		p.Fix = "if the node is to be in the mesh, invite it again: hawser node invite " + node + ", and there hawser-agent --join @FILE with that token; else stop its agent"
	case strings.Contains(says, kvstore.ErrDenied.Error()):
		p.Problem = "the keyspace does not admit this node's certificate: " + says + meanwhile
		p.Fix = "see that the etcd has the user that the certificate names, with the role of agents; or " + again
	case has(says, "certificate signed by unknown authority", "unable to find trusted CA", "tls: unknown certificate authority"):
		p.Problem = "this node and the cluster do not believe each other's CA, as when the CA was replaced without this node: " + says + meanwhile
		p.Fix = again
	case has(says, "tls: bad certificate", "tls: expired certificate", "tls: revoked certificate", "tls: certificate required"):
		p.Problem = "the keyspace refuses this node's certificate: " + says + meanwhile
		p.Fix = "see that the certificate is valid and the clock right; else " + again
	case has(says, "x509: certificate has expired or is not yet valid"):
		p.Problem = "by this node's clock the certificate of the keyspace is not valid: " + says + meanwhile
		p.Fix = "set the clock of this node right; if it is, see the clock and the certificate of the API server, or of the external etcd"
	default:
		p.Problem = "not connected: " + says + meanwhile
		p.Fix = "check that hawser-apiserver runs"
	}
	return p
}

func has(text string, parts ...string) bool {
	for _, p := range parts {
		if strings.Contains(text, p) {
			return true
		}
	}
	return false
}
