// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"io"
	"iter"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// cmdMetric is `metric PLACE PORT SAMPLE`: one of the samples that programs at the
// place serve there has exactly this name and these labels, and is above 0. SAMPLE
// is a regular expression.
func cmdMetric(s *script, args []string) (string, error) {
	if len(args) != 3 {
		return "", usage("metric PLACE PORT SAMPLE")
	}
	p, err := s.place(args[0])
	if err != nil {
		return "", err
	}
	want, err := regexp.Compile(`^(?:` + args[2] + `)$`)
	if err != nil {
		return "", err
	}
	text, err := scrapeAt(p, args[1])
	if err != nil {
		return "", no("scrape %s: %v", args[0], err)
	}
	for line, v := range samples(text, want) {
		if v > 0 {
			return line, nil
		}
	}
	return text, no("%s has no sample %s above 0", args[0], args[2])
}

// cmdTotal is `total PLACE PORT SAMPLE [== VALUE[+MORE]]`: the sum of the samples that
// programs at the place serve under names that match; without a VALUE, which was
// printed before, say, it is printed.
func cmdTotal(s *script, args []string) (string, error) {
	if len(args) != 3 && (len(args) != 5 || args[3] != "==") {
		return "", usage("total PLACE PORT SAMPLE [== VALUE[+MORE]]")
	}
	p, err := s.place(args[0])
	if err != nil {
		return "", err
	}
	want, err := regexp.Compile(`^(?:` + args[2] + `)$`)
	if err != nil {
		return "", err
	}
	text, err := scrapeAt(p, args[1])
	if err != nil {
		return "", no("scrape %s: %v", args[0], err)
	}
	var sum float64
	for _, v := range samples(text, want) {
		sum += v
	}
	if len(args) == 3 {
		return strconv.FormatFloat(sum, 'f', -1, 64) + "\n", nil
	}
	var value float64
	for part := range strings.SplitSeq(args[4], "+") {
		v, err := strconv.ParseFloat(strings.TrimSpace(part), 64)
		if err != nil {
			return "", err
		}
		value += v
	}
	if sum == value {
		return "", nil
	}
	return text, no("%s of %s are %v, not %s", args[2], args[0], sum, args[4])
}

// samples are the lines of a scrape whose names and labels match, with their
// values.
func samples(text string, want *regexp.Regexp) iter.Seq2[string, float64] {
	return func(yield func(string, float64) bool) {
		for line := range strings.Lines(text) {
			i := strings.LastIndexByte(line, ' ')
			if i < 0 || !want.MatchString(line[:i]) {
				continue
			}
			if v, err := strconv.ParseFloat(strings.TrimSpace(line[i:]), 64); err == nil && !yield(line, v) {
				return
			}
		}
	}
}

func scrapeAt(p place, port string) (text string, err error) {
	err = nsthread.InNetns(p.netns, func() error {
		text, err = scrape(net.JoinHostPort("127.0.0.1", port))
		return err
	})
	return text, err
}

// scrape reads /metrics over a connection that it makes on the caller's thread.
func scrape(address string) (string, error) {
	c, err := net.DialTimeout("tcp", address, callTimeout)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, "GET /metrics HTTP/1.0\r\nHost: "+address+"\r\n\r\n"); err != nil {
		return "", err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}
