// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

const (
	expirySoon    = 14 * 24 * time.Hour
	lagWarning    = 5.0 // seconds
	fullWarning   = 0.8 // of a map
	fullProblem   = 0.95
	refusedLately = 5 * time.Minute
	quotaWarning  = 6 << 30 // of etcd's 8 GiB
	// unknownCA is what a handshake says of a certificate whose CA is not believed.
	unknownCA = "signed by unknown authority"
	// remoteTLS is what a handshake says when the other side does not believe ours.
	remoteTLS = "remote error: tls: "
)

// Node is what one agent says.
type Node struct {
	Name   string
	Status *hawserv1.NodeStatusReport // nil: it could not be asked
	Maps   []*hawserv1.Map
	Paths  []*hawserv1.NodePath
	Drops  []*hawserv1.DropCounter
	Clock  *Clock // nil: not known
	Err    error
}

// Clock is a program's clock beside ours.
type Clock struct {
	Offset time.Duration // its minus ours
	Unsure time.Duration // the offset may be so much more or less
}

// Snapshot is what the programs of one cluster say.
type Snapshot struct {
	Cluster string
	Now     time.Time
	Status  *hawserv1.ClusterStatusReport // nil: the API server could not be asked
	Peers   []*hawserv1.PeerStatus
	Members []*hawserv1.NodeInfo  // of all clusters
	Grants  []*hawserv1.PeerGrant // what it grants to each
	// Preflights are how the API server finds each of its peers now.
	Preflights map[string]*hawserv1.JoinResponse
	Clock      *Clock // of the API server; nil: not known
	Err        error
	Nodes      []Node
}

// examination collects findings of one cluster.
type examination struct {
	Snapshot
	out []Finding
}

func (e *examination) add(s Severity, check, object, next, cause string, args ...any) {
	e.out = append(e.out, Finding{Severity: s, Cluster: e.Cluster, Check: check, Object: object, Cause: fmt.Sprintf(cause, args...), Next: next})
}

// Examine judges what the programs of a cluster said.
func Examine(s Snapshot) []Finding {
	e := &examination{Snapshot: s}
	e.apiServer()
	for _, p := range s.Peers {
		e.peer(p)
		e.handshakes(p)
	}
	e.members()
	for _, n := range s.Nodes {
		e.node(n)
	}
	return e.out
}

func (e *examination) apiServer() {
	object := "API server of " + e.Cluster
	if errors.Is(e.Err, session.ErrNoAPIServer) {
		e.add(Warning, "reachability", object, "run this on its host, too; or ask it from here: hawser config add-context --help", "not asked: it does not run on this host")
		return
	}
	if e.Status == nil {
		e.add(Problem, "reachability", object, "see that hawser-apiserver runs there, and its log; packets flow without it, changes do not arrive", "%v", e.Err)
		return
	}
	e.add(OK, "reachability", object, "", "answers, version %s", e.Status.GetVersion())
	for _, p := range e.Status.GetProblems() {
		if !strings.HasPrefix(p.GetObject(), "peer ") { // told in its own check
			e.add(Problem, "health", p.GetObject(), p.GetFix(), "%s", p.GetProblem())
		}
	}
	e.clock(object, e.Clock)
	e.expiry("certificate of the "+object, e.Status.GetCertificateExpiresAt(), "it should have renewed itself at two thirds of its life: see the log of the API server")
	e.expiry("CA of "+e.Cluster, e.Status.GetCaExpiresAt(), "every certificate of the cluster ends with it: hawser mesh rotate-ca")
	if b := e.Status.GetDatabaseBytes(); b > quotaWarning {
		e.add(Warning, "etcd", object, "find what grows: hawser kvstore tree; at 8 GiB etcd takes no more writes", "its database has %s", printer.Bytes(b))
	}
}

func (e *examination) expiry(object string, at int64, next string) {
	if at == 0 {
		return
	}
	end := time.Unix(0, at)
	switch left := end.Sub(e.Now); {
	case left <= 0:
		e.add(Problem, "certificate", object, next, "expired %s ago", printer.Duration(-left))
	case left < expirySoon:
		e.add(Warning, "certificate", object, next, "expires in %s", printer.Duration(left))
	default:
		e.add(OK, "certificate", object, "", "valid until %s", end.UTC().Format(time.DateOnly))
	}
}

func (e *examination) peer(p *hawserv1.PeerStatus) {
	object := fmt.Sprintf("%s → %s", e.Cluster, p.GetName())
	age := ""
	if p.GetSince() != 0 {
		age = " for " + printer.Duration(e.Now.Sub(time.Unix(0, p.GetSince())))
	}
	switch p.GetState() {
	case "connected":
		e.add(OK, "federation", object, "", "connected%s, %d keys", age, p.GetKeys())
	case "pending":
		e.add(Warning, "federation", object, "finish the join, or wait until its token expires", "joined half%s", age)
	case "gone": // of a shared etcd
		e.add(Warning, "federation", object, "if it comes back, nothing: it is admitted with what it was granted; if not: hawser mesh leave "+p.GetName(),
			"gone%s: nothing of it is left in the etcd that it shares; its ranges and id are still kept for it", age)
	default:
		cause := p.GetState() + age
		if p.GetData() == "" {
			cause += ", never heard"
		}
		if p.GetLastError() != "" {
			cause += ": " + p.GetLastError()
		}
		e.add(Problem, "federation", object, Next(p), "%s", cause)
	}
	late := p.GetLagSeconds() > lagWarning || p.GetLagP99Seconds() > lagWarning
	if p.GetState() == "connected" && !late {
		e.add(OK, "lag", object, "", "%d changes, %.1f s behind", p.GetLagEvents(), p.GetLagSeconds())
	}
	if p.GetState() == "connected" && late {
		e.add(Warning, "lag", object, "see the load of both API servers: hawser_federation_apply_seconds, process_cpu_seconds_total",
			"%d changes, %.1f s behind (p99 %.1f s)", p.GetLagEvents(), p.GetLagSeconds(), p.GetLagP99Seconds())
	}
	for _, f := range p.GetFindings() {
		e.add(Warning, f.GetCheck(), object, f.GetFix(), "%s", f.GetProblem())
	}
	e.refused(object, p)
	if p.GetState() == "connected" { // else it may have another one by now
		e.expiry("certificate of "+p.GetName(), p.GetCertificateExpiresAt(), "it should have renewed itself at two thirds of its life: see the log of its API server")
	}
}

// refused tells of records that are refused as they stand, and of a stream that
// was of late. What is mended since counts in hawser mesh status only.
func (e *examination) refused(object string, p *hawserv1.PeerStatus) {
	var what []string
	if n := p.GetRefusedNow(); n > 0 {
		what = append(what, fmt.Sprintf("%s records are refused as they are now", printer.Count(uint64(n))))
	}
	if at := p.GetRefusedAt(); at != 0 && e.Now.Sub(time.Unix(0, at)) < refusedLately {
		what = append(what, "what it says of itself, or its stream, was refused "+printer.Duration(e.Now.Sub(time.Unix(0, at)))+" ago")
	}
	if len(what) == 0 {
		return
	}
	var reasons []string
	for reason, n := range p.GetRefused() {
		reasons = append(reasons, fmt.Sprintf("%d %s", n, reason))
	}
	slices.Sort(reasons)
	e.add(Warning, "refused records", object, "what its grant does not allow, hawser mesh grant shows and widens; what cannot be read or lies about its key must be mended in its own cluster (hawser mesh doctor there); newest: "+strings.Join(p.GetLastRefused(), "; "),
		"%s; since the API server started: %s", strings.Join(what, "; "), strings.Join(reasons, ", "))
}

// absent tells of a node whose presence ended. Its agent may run all the same, and
// then it says why.
func (e *examination) absent(m *hawserv1.NodeInfo) {
	object := m.GetCluster() + "/" + m.GetName()
	i := slices.IndexFunc(e.Nodes, func(n Node) bool { return n.Name == m.GetName() && n.Status != nil && m.GetCluster() == e.Cluster })
	if i < 0 {
		e.add(Problem, "node", object, "start its agent; if it runs, see what it says itself: hawser status, on that node; only if the node will not come back: hawser node forget "+m.GetName()+" --yes", "its agent is down, or cannot reach the keyspace")
		return
	}
	cause, next := "it is not in the keyspace", "see the log of its agent"
	for _, p := range e.Nodes[i].Status.GetProblems() {
		if strings.HasPrefix(p.GetObject(), "keyspace ") {
			cause, next = p.GetProblem(), p.GetFix()
		}
	}
	e.add(Problem, "node", object, next, "its agent runs, but is cut off: %s", cause)
}

// members compares the nodes that the cluster knows of.
func (e *examination) members() {
	mtus := map[uint32][]string{}
	for _, m := range e.Members {
		if m.GetState() == "absent" {
			e.absent(m)
		}
		switch m.GetHealth() {
		case "dead", "suspect":
			e.add(Problem, "node", m.GetCluster()+"/"+m.GetName(), "see what nodes say of the way to it: hawser node paths", "its cluster says: %s", m.GetHealth())
		}
		if m.GetProblem() != "" {
			e.add(Problem, "node", m.GetCluster()+"/"+m.GetName(), "its agent writes it again within five minutes, or at once when it is restarted; see it: hawser kvstore get state/"+
				m.GetCluster()+"/nodes/"+m.GetName(), "%s", m.GetProblem())
			continue // no more is known of it
		}
		mtus[m.GetMtu()] = append(mtus[m.GetMtu()], m.GetName())
	}
	if len(mtus) > 1 {
		var sizes []string
		for mtu, nodes := range mtus {
			sizes = append(sizes, fmt.Sprintf("%d on %s", mtu, strings.Join(nodes, ", ")))
		}
		slices.Sort(sizes)
		e.add(Warning, "MTU", "underlays", "give all nodes the smallest one, else large packets between them are lost", "they differ: %s", strings.Join(sizes, "; "))
	}
}

func (e *examination) node(n Node) {
	object := "node " + n.Name
	if n.Status == nil {
		e.add(Problem, "reachability", object, "see that hawser-agent runs there, and its log; its pods' traffic goes on", "%v", n.Err)
		return
	}
	st := n.Status
	e.add(OK, "reachability", object, "", "answers, version %s", st.GetVersion())
	for _, p := range st.GetProblems() {
		e.add(Problem, "health", object+", "+p.GetObject(), p.GetFix(), "%s", p.GetProblem())
	}
	if v := e.Status.GetVersion(); v != "" && v != st.GetVersion() {
		e.add(Warning, "version", object, "run one version in a cluster once an upgrade is over", "runs %s, the API server %s", st.GetVersion(), v)
	}
	e.clock(object, n.Clock)
	renew := "see its log for why the renewal fails; port 4244 of the API server must be reachable"
	if !st.GetEnrolled() {
		renew = "it was issued by hand and does not renew itself: enrol the node: hawser node invite " + n.Name
	}
	e.expiry("certificate of "+object, st.GetCertificateExpiresAt(), renew)
	e.maps(object, n.Maps)
	e.drops(object, n.Drops)
}

func (e *examination) maps(object string, maps []*hawserv1.Map) {
	for _, m := range maps {
		if m.GetMaxEntries() == 0 || m.GetType() != "Hash" && m.GetType() != "LPMTrie" {
			continue // arrays are always full, LRU maps make room themselves
		}
		full := float64(m.GetEntries()) / float64(m.GetMaxEntries())
		if full < fullWarning {
			continue
		}
		severity := Warning
		if full >= fullProblem {
			severity = Problem
		}
		e.add(severity, "map pressure", object+", map "+m.GetName(), "what does not fit is not enforced or not forwarded: larger maps, or fewer objects",
			"%d of %d entries", m.GetEntries(), m.GetMaxEntries())
	}
}

// telling are the drops that hint at how the mesh is set up.
func telling() map[string]string {
	return map[string]string{
		"unknown sender":       "a host that is no node of the mesh tunnels to this one, or the node's own record has not arrived, or is refused (hawser mesh status)",
		"spoofed identity":     "a node sends identities of another cluster: find out which by hawser monitor --type drop",
		"no tunnel endpoint":   "a pod's node is not known here: hawser ipcache list, hawser node list",
		"packet too big":       "an MTU on the path is smaller than the pods assume",
		"conntrack full":       "no room for new flows: larger maps",
		"no masquerade port":   "established flows to one address outside have all of the node's ports, or the map snat4 is full: see whose they are by hawser monitor --type verdict; a policy can bound them",
		"identity unknown yet": "labels arrive later than packets: see the lag of the sender's cluster",
	}
}

func (e *examination) drops(object string, drops []*hawserv1.DropCounter) {
	hints, seen := telling(), map[string]uint64{}
	for _, d := range drops {
		if hints[d.GetReason()] != "" && d.GetPackets() > 0 {
			seen[d.GetReason()] += d.GetPackets()
		}
	}
	for reason, n := range seen {
		e.add(Warning, "drops", object, hints[reason], "%d packets since its datapath was made: %s", n, reason)
	}
}
