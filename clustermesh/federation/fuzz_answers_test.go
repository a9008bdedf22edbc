// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"io"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
)

// pages is a peer's answer to Diff that somebody else wrote: each length byte and
// what follows is one message.
type pages struct {
	grpc.ServerStreamingClient[federationv1.DiffPage]
	left []byte
}

func (p *pages) Recv() (*federationv1.DiffPage, error) {
	if len(p.left) == 0 {
		return nil, io.EOF
	}
	n := min(int(p.left[0]), len(p.left)-1)
	var page federationv1.DiffPage
	err := proto.Unmarshal(p.left[1:1+n], &page)
	p.left = p.left[1+n:]
	return &page, err
}

// none are no keys.
type none struct{}

func (none) next(context.Context) (hashed, bool, error) { return hashed{}, false, nil }

// FuzzDiffAnswer is whatever a peer answers to Diff: what is told of it are keys
// that were asked for, in order, fit for a terminal.
func FuzzDiffAnswer(f *testing.F) {
	page := func(keys ...string) []byte {
		var m federationv1.DiffPage
		for _, k := range keys {
			m.Entries = append(m.Entries, &federationv1.DiffEntry{Key: k, ValueSha256: make([]byte, 32)})
		}
		raw, err := proto.Marshal(&m)
		if err != nil || len(raw) > 255 {
			f.Fatal(err, len(raw))
		}
		return append([]byte{byte(len(raw))}, raw...)
	}
	f.Add(append(page("ips/10.2.0.1%2F32", "ips/10.2.0.2%2F32"), page("ips/10.2.0.3%2F32")...), "ips/")
	f.Add(page("ips/b", "ips/a"), "ips/")
	f.Add(page("nodes/a"), "ips/")
	f.Add(page("ips/\x1b[2J"), "")
	f.Add([]byte{200, 1, 2}, "")
	f.Fuzz(func(t *testing.T, raw []byte, prefix string) {
		k := &originKeys{stream: &pages{left: raw}, r: DiffRange{Prefix: prefix}}
		out, err := compare(t.Context(), none{}, k, "", 100)
		if err != nil {
			return
		}
		last := ""
		for _, r := range out.GetRows() {
			key := r.GetKey()
			if !strings.HasPrefix(key, prefix) || len(key) > maxKeyBytes || last != "" && key <= last || r.GetDifference() != diffMissing {
				t.Fatalf("told %q after %q, asked for %q", key, last, prefix)
			}
			if !utf8.ValidString(key) || strings.ContainsFunc(key, unicode.IsControl) {
				t.Fatalf("told %q, which is not fit to be shown", key)
			}
			last = key
		}
	})
}

// FuzzExplanation is whatever a peer answers to a question, and asks: answers
// reach who asked, bounded and fit for a terminal, and nobody else.
func FuzzExplanation(f *testing.F) {
	add := func(m *federationv1.Frame) {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	add(&federationv1.Frame{Body: &federationv1.Frame_Explanation{Explanation: &federationv1.Explanation{Id: 1, Outcome: 1, Allowed: true, Reason: "rule 0"}}})
	add(&federationv1.Frame{Body: &federationv1.Frame_Explanation{Explanation: &federationv1.Explanation{Id: 2, Reason: "\x1b[2J" + strings.Repeat("x", 1000)}}})
	add(&federationv1.Frame{Body: &federationv1.Frame_Explain{Explain: &federationv1.Explain{Id: 7, Self: &federationv1.ExplainEnd{Labels: []string{"k8s:a=b"}}}}})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var m federationv1.Frame
		if proto.Unmarshal(raw, &m) != nil {
			return
		}
		q := newQuestions()
		mine := make(chan *federationv1.Explanation, 1)
		q.waiting[1] = mine
		for range 2 * questionsWaiting {
			q.answered(m.GetExplanation())
			q.asked(m.GetExplain())
		}
		if len(q.theirs) > questionsWaiting || len(q.waiting) != 1 {
			t.Fatalf("%d questions kept, %d of ours wait", len(q.theirs), len(q.waiting))
		}
		select {
		case a := <-mine:
			if a.GetId() != 1 {
				t.Fatalf("answered with %d", a.GetId())
			}
			if r := a.GetReason(); len(r) > maxReason || !utf8.ValidString(r) || strings.ContainsFunc(r, unicode.IsControl) {
				t.Fatalf("reason %q", r)
			}
		default:
			if m.GetExplanation().GetId() == 1 {
				t.Fatal("the answer is lost")
			}
		}
	})
}
