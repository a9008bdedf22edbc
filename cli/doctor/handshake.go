// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"strings"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
)

// skewWarning is how far a clock may be off: as for peers.
const skewWarning = 5 * time.Second

// clock judges a program's clock beside this host's.
func (e *examination) clock(object string, c *Clock) {
	if c == nil {
		return
	}
	if off := c.Offset.Abs() - c.Unsure; off > skewWarning {
		side := "behind"
		if c.Offset > 0 {
			side = "ahead of"
		}
		e.add(Warning, "clock", object, "set both clocks by NTP: certificates, ages and lag are judged by them",
			"its clock is %s %s this host's", printer.Duration(off), side)
		return
	}
	e.add(OK, "clock", object, "", "within %s of this host's", printer.Duration(max(c.Offset.Abs(), c.Unsure).Round(time.Millisecond)+time.Millisecond))
}

// Next is what to do about a peer whose stream is not up.
func Next(p *hawserv1.PeerStatus) string {
	why, heard := p.GetLastError(), p.GetData() != ""
	after, mutual := "the data stays meanwhile", "it has joined this cluster"
	if !heard && p.GetKeys() == 0 {
		after = "nothing of it is here until then"
	}
	if p.GetDeclared() {
		mutual = "its own --peers-file declares this cluster (hawser mesh declare prints how, here)"
	}
	var next string
	switch {
	case strings.Contains(why, unknownCA) && p.GetDeclared():
		next = "its CA is not one that --peers-file names: put what hawser mesh declare prints there into the file here; if nobody there knows of another CA, somebody poses as it"
	case strings.Contains(why, unknownCA):
		next = "a CA replaced the one that is known of it: was that while the two could not see each other (hawser mesh rotate-ca, there), leave on both sides and join again by a token; if nobody there knows of it, somebody poses as it"
	case strings.Contains(why, remoteTLS):
		next = "it answers, and does not admit this cluster: see that " + mutual + ", and by the CA of today"
	case len(p.GetEndpoints()) == 0:
		next = "no address of it is known here, so that it must dial: see that it reaches port 4243 of this cluster's API server, and that " + mutual
	default:
		next = fmt.Sprintf("see that its API server runs at %s and that port 4243 is open one way", strings.Join(p.GetEndpoints(), ", "))
		if !heard {
			next += ", and that " + mutual
		}
	}
	return next + "; " + after
}

// handshakes tells how a peer's endpoints answer our API server now, and what else
// speaks against the peer as it is. While a stream is up, what does not answer from
// this side is no problem.
func (e *examination) handshakes(p *hawserv1.PeerStatus) {
	r := e.Preflights[p.GetName()]
	object := fmt.Sprintf("%s → %s", e.Cluster, p.GetName())
	told := map[string]bool{"reach": true, "tls": true, "certificate": true} // elsewhere, and better
	for _, n := range e.Nodes {
		if len(n.Paths) > 0 { // see Ways
			told["tunnel"], told["path-mtu"] = true, true
		}
	}
	for _, f := range p.GetFindings() {
		told[f.GetCheck()] = true
	}
	for _, f := range r.GetFindings() {
		switch {
		case told[f.GetCheck()]:
		case f.GetBlocking():
			e.add(Problem, f.GetCheck(), object, f.GetFix(), "%s", f.GetProblem())
		default:
			e.add(Warning, f.GetCheck(), object, f.GetFix(), "%s", f.GetProblem())
		}
	}
	bad := Problem
	if p.GetState() == "connected" {
		bad = Warning
	}
	for _, h := range r.GetHandshakes() {
		at := object + " at " + h.GetEndpoint()
		shown := fmt.Sprintf("%s of CA %q, valid until %s", h.GetCertificate(), h.GetIssuer(), time.Unix(0, h.GetExpiresAt()).UTC().Format(time.DateOnly))
		switch {
		case h.GetProblem() == "":
			e.add(OK, "TLS", at, "", "it shows %s", shown)
		case h.GetCertificate() == "":
			e.add(bad, "TLS", at, "see that hawser-apiserver runs there and let 4243/tcp through; one direction is enough", "no handshake: %s", h.GetProblem())
		default:
			e.add(bad, "TLS", at, "compare the name and the CA with what hawser mesh doctor says on its side; after a change of CA while it was away, or a theft: hawser mesh leave, and join again",
				"it shows %s: %s", shown, h.GetProblem())
		}
	}
}
