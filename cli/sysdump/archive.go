// SPDX-License-Identifier: Apache-2.0

package sysdump

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"path"
	"regexp"
	"sync"
	"time"
)

// secrets are texts that never enter an archive, and what stands for them.
func secrets() map[*regexp.Regexp]string {
	return map[*regexp.Regexp]string{
		regexp.MustCompile(`hw[0-9]+\.[A-Za-z0-9_-]{16,}`):                                                    "hw1.<token removed>",
		regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----`):       "<private key removed>",
		regexp.MustCompile(`(?i)("?(?:password|passwd|secret|bearer|api_?key|psk)"?\s*[:=]\s*)"?[^\s",}]+"?`): `${1}"<removed>"`,
	}
}

// archive is a tar.gz that is safe for concurrent use.
type archive struct {
	mu      sync.Mutex
	root    string // directory of all files in it
	gz      *gzip.Writer
	tar     *tar.Writer
	secrets map[*regexp.Regexp]string
	files   int
	failed  []string
}

func newArchive(w io.Writer, root string) *archive {
	gz := gzip.NewWriter(w)
	return &archive{root: root, gz: gz, tar: tar.NewWriter(gz), secrets: secrets()}
}

// clean takes secrets out of a text.
func (a *archive) clean(data []byte) []byte {
	for re, by := range a.secrets {
		data = re.ReplaceAll(data, []byte(by))
	}
	return data
}

// add stores a file without its secrets.
func (a *archive) add(name string, data []byte, now time.Time) error {
	data = a.clean(data)
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.tar.WriteHeader(&tar.Header{
		Name: path.Join(a.root, name), Mode: 0o600, Size: int64(len(data)), ModTime: now, Format: tar.FormatPAX,
	})
	if err == nil {
		_, err = io.Copy(a.tar, bytes.NewReader(data))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	a.files++
	return nil
}

// miss notes what could not be had.
func (a *archive) miss(what string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = append(a.failed, fmt.Sprintf("%s: %v", what, err))
}

func (a *archive) close() error {
	err := a.tar.Close()
	if gerr := a.gz.Close(); err == nil {
		err = gerr
	}
	if err != nil {
		return fmt.Errorf("finish the archive: %w", err)
	}
	return nil
}
