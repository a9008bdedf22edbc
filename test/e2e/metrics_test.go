// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"io"
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
	var text string
	if err := nsthread.InNetns(p.netns, func() (err error) {
		text, err = scrape(net.JoinHostPort("127.0.0.1", args[1]))
		return err
	}); err != nil {
		return "", no("scrape %s: %v", args[0], err)
	}
	for line := range strings.Lines(text) {
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || !want.MatchString(line[:i]) {
			continue
		}
		if v, err := strconv.ParseFloat(strings.TrimSpace(line[i:]), 64); err == nil && v > 0 {
			return line, nil
		}
	}
	return text, no("%s has no sample %s above 0", args[0], args[2])
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
