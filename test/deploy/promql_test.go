// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"fmt"
	"regexp"
	"strings"
)

// selection is one metric that an expression selects.
type selection struct {
	name     string
	matchers []matcher
	ranged   bool   // over a time: [5m]
	function string // innermost around it; empty: none
}

type matcher struct{ label, op, value string }

// expression is what an expression needs to exist.
type expression struct {
	selections []selection
	by         []string // labels that it groups or joins by
	grouped    bool     // only those are left
}

var token = regexp.MustCompile(`^(?:[a-zA-Z_][a-zA-Z0-9_]*|"[^"]*"|\[[^\]]*\]|[0-9][0-9.]*(?:e[0-9]+)?[smhd]?|=~|!~|!=|==|>=|<=|[-+*/%^(){},=<>])`)

// clauses are the words before a list of labels; true: the list is what is left.
var clauses = map[string]bool{"by": true, "without": false, "on": false, "ignoring": false, "group_left": false, "group_right": false}

var (
	operators = words("and or unless bool offset")
	functions = words("sum min max avg count quantile topk rate increase deriv histogram_quantile abs time vector")
	counting  = words("rate increase")
)

func words(s string) map[string]bool {
	out := map[string]bool{}
	for w := range strings.FieldsSeq(s) {
		out[w] = true
	}
	return out
}

// parser reads just enough of PromQL: every word must be something that it knows,
// or a metric.
type parser struct {
	tokens []string
	open   []string // the function before each parenthesis that is open
	out    expression
}

func parse(text string) (expression, error) {
	var p parser
	for rest := strings.TrimSpace(text); rest != ""; rest = strings.TrimSpace(rest) {
		t := token.FindString(rest)
		if t == "" {
			return expression{}, fmt.Errorf("%q is no PromQL", rest)
		}
		p.tokens, rest = append(p.tokens, t), rest[len(t):]
	}
	for len(p.tokens) > 0 {
		if err := p.step(); err != nil {
			return expression{}, err
		}
	}
	if len(p.open) > 0 {
		return expression{}, fmt.Errorf("%d parentheses are not closed", len(p.open))
	}
	return p.out, nil
}

// next is the first token, which it takes.
func (p *parser) next() string {
	if len(p.tokens) == 0 {
		return ""
	}
	t := p.tokens[0]
	p.tokens = p.tokens[1:]
	return t
}

func (p *parser) at(t string) bool { return len(p.tokens) > 0 && p.tokens[0] == t }

func (p *parser) step() error {
	t := p.next()
	left, isClause := clauses[t]
	switch {
	case t == "(":
		p.open = append(p.open, "")
	case t == ")":
		if len(p.open) == 0 {
			return fmt.Errorf("a parenthesis too many")
		}
		p.open = p.open[:len(p.open)-1]
	case isClause:
		labels, err := p.labels()
		if left {
			p.out.grouped = true
			p.out.by = append(p.out.by, labels...)
		}
		return err
	case functions[t]:
		for !p.at("(") {
			if len(p.tokens) == 0 || !p.isClause() {
				return fmt.Errorf("%s: without its argument", t)
			}
			if err := p.step(); err != nil {
				return err
			}
		}
		p.next()
		p.open = append(p.open, t)
	case !operators[t] && regexp.MustCompile(`^[a-zA-Z_]`).MatchString(t):
		return p.selection(t)
	}
	return nil
}

func (p *parser) isClause() bool {
	_, ok := clauses[p.tokens[0]]
	return ok
}

func (p *parser) labels() (out []string, err error) {
	if p.next() != "(" {
		return nil, fmt.Errorf("a list of labels is missing")
	}
	for t := p.next(); t != ")"; t = p.next() {
		if t == "" {
			return nil, fmt.Errorf("a list of labels does not end")
		}
		if t != "," {
			out = append(out, t)
		}
	}
	return out, nil
}

func (p *parser) selection(name string) error {
	s := selection{name: name}
	if len(p.open) > 0 {
		s.function = p.open[len(p.open)-1]
	}
	if p.at("{") {
		p.next()
		for !p.at("}") {
			m := matcher{label: p.next(), op: p.next(), value: strings.Trim(p.next(), `"`)}
			if m.op != "=" && m.op != "!=" && m.op != "=~" && m.op != "!~" {
				return fmt.Errorf("%s: %q is no comparison of label %s", name, m.op, m.label)
			}
			s.matchers = append(s.matchers, m)
			if p.at(",") {
				p.next()
			}
		}
		p.next()
	}
	if len(p.tokens) > 0 && strings.HasPrefix(p.tokens[0], "[") {
		s.ranged = true
		p.next()
	}
	p.out.selections = append(p.out.selections, s)
	return nil
}
