// SPDX-License-Identifier: Apache-2.0

package sysdump

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"path"
	"sync"
	"time"
)

// archive is a tar.gz that is safe for concurrent use.
type archive struct {
	mu      sync.Mutex
	root    string // directory of all files in it
	gz      *gzip.Writer
	tar     *tar.Writer
	secrets []rule
	files   int
	failed  []string
}

func newArchive(w io.Writer, root string) *archive {
	gz := gzip.NewWriter(w)
	return &archive{root: root, gz: gz, tar: tar.NewWriter(gz), secrets: rules()}
}

// add stores a file without its secrets.
func (a *archive) add(name string, data []byte, now time.Time) error {
	data = clean(a.secrets, data)
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
