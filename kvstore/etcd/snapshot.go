// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
)

const (
	snapshotSuffix = ".snapshot"
	snapshotTime   = "20060102T150405.000Z"
	// revisionBump is added to the revisions of a restored store, whose older
	// history is gone: no position in the former one can be mistaken for one
	// in it.
	revisionBump = 1_000_000_000
	// snapshotBlock: a file of whole blocks and a SHA-256 carries its own sum.
	snapshotBlock = 512
)

// SnapshotInfo is a snapshot of a whole store, in the format of etcdctl.
type SnapshotInfo struct {
	Path     string
	Bytes    int64
	Revision int64 // 0 when not read
	Keys     int   // 0 when not read
	Time     time.Time
}

// Snapshot writes a snapshot of the store to w and returns its size. It needs
// root's rights.
func (c *Client) Snapshot(ctx context.Context, w io.Writer) (int64, error) {
	c.level(ctx)
	r, err := c.etcd.Snapshot(ctx)
	if err != nil {
		return 0, c.wrap("take snapshot of", c.endpoint, err)
	}
	n, err := io.Copy(w, r)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return n, c.wrap("take snapshot of", c.endpoint, err)
	}
	return n, nil
}

// level waits, for a moment, until the member has applied what is committed: a
// snapshot is of one member, which may be behind. Without a quorum there is
// nothing to wait for, and the snapshot is taken all the same.
func (c *Client) level(ctx context.Context) {
	const moment = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, moment)
	defer cancel()
	_, _ = c.etcd.Get(ctx, "\x00")
}

// Snapshot writes a snapshot of this member to w and returns its size.
func (s *Server) Snapshot(ctx context.Context, w io.Writer) (int64, error) {
	return s.root.Snapshot(ctx, w)
}

// snapshotIfDue takes a snapshot when the newest is old enough, and removes the
// oldest of too many. The newest ones of a full disk stay: nothing is removed
// before the new one is whole.
func (s *Server) snapshotIfDue(ctx context.Context, now time.Time) error {
	s.mu.Lock()
	last := s.snapshot.Time
	s.mu.Unlock()
	if s.cfg.SnapshotDir == "" || now.Sub(last) < s.cfg.SnapshotEvery && !last.After(now) {
		return nil
	}
	if err := os.MkdirAll(s.cfg.SnapshotDir, 0o700); err != nil {
		return err
	}
	final := filepath.Join(s.cfg.SnapshotDir, s.cfg.Cluster+"-"+s.cfg.Name+"-"+now.UTC().Format(snapshotTime)+snapshotSuffix)
	tmp, err := os.OpenFile(final+".partial", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	n, err := s.Snapshot(ctx, tmp)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), final)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	s.mu.Lock()
	s.snapshot = SnapshotInfo{Path: final, Bytes: n, Time: now}
	s.mu.Unlock()
	files := snapshots(s.cfg.SnapshotDir)
	var errs []error
	for len(files) > s.cfg.SnapshotKeep {
		errs = append(errs, os.Remove(files[0]))
		files = files[1:]
	}
	return errors.Join(errs...)
}

// snapshots are the finished snapshots of a directory, oldest first. Their names
// end with their time.
func snapshots(dir string) []string {
	all, _ := filepath.Glob(filepath.Join(dir, "*"+snapshotSuffix)) // the pattern is well-formed
	slices.SortFunc(all, func(a, b string) int { return strings.Compare(stamp(a), stamp(b)) })
	return all
}

func stamp(path string) string {
	name := strings.TrimSuffix(filepath.Base(path), snapshotSuffix)
	return name[strings.LastIndexByte(name, '-')+1:]
}

func newestSnapshot(dir string) SnapshotInfo {
	if dir == "" {
		return SnapshotInfo{}
	}
	for _, path := range slices.Backward(snapshots(dir)) {
		at, err := time.Parse(snapshotTime, stamp(path))
		info, serr := os.Stat(path)
		if err == nil && serr == nil {
			return SnapshotInfo{Path: path, Bytes: info.Size(), Time: at}
		}
	}
	return SnapshotInfo{}
}

// CheckSnapshot says what a snapshot file holds, or why it cannot be restored.
func CheckSnapshot(path string) (SnapshotInfo, error) {
	if err := checkSum(path); err != nil {
		return SnapshotInfo{}, fmt.Errorf("snapshot %s: %w", path, err)
	}
	st, err := snapshot.NewV3(zap.NewNop()).Status(path)
	if err != nil {
		return SnapshotInfo{}, fmt.Errorf("snapshot %s: %w", path, err)
	}
	return SnapshotInfo{Path: path, Bytes: st.TotalSize, Revision: st.Revision, Keys: st.TotalKey}, nil
}

// checkSum verifies the SHA-256 at the end of the file.
func checkSum(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := info.Size() - sha256.Size
	if size <= 0 || size%snapshotBlock != 0 {
		return errors.New("not a snapshot of etcd, or cut short")
	}
	h := sha256.New()
	if _, err := io.CopyN(h, f, size); err != nil {
		return err
	}
	sum, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	if !bytes.Equal(sum, h.Sum(nil)) {
		return errors.New("damaged: its checksum is wrong")
	}
	return nil
}

// Restored is a snapshot made ready to replace a server's data.
type Restored struct {
	SnapshotInfo
	cfg   ServerConfig
	fresh string
}

// Restore replaces the data of a stopped server by a snapshot's; see
// PrepareRestore and Commit, which it does one after the other.
func Restore(ctx context.Context, cfg ServerConfig, path string, prepare func(context.Context, *Client) error) (former string, err error) {
	r, err := PrepareRestore(ctx, cfg, path, prepare)
	if err != nil {
		return "", err
	}
	return r.Commit(ctx)
}

// PrepareRestore builds the data of a snapshot beside a server's, which may run.
// Of several members it makes the first of a new store; the others join it
// (ReplaceMember). prepare changes the restored data before any agent sees it: it
// gets a client with all rights of the store, served on loopback only; if it
// fails nothing is kept. Commit or Discard ends it.
func PrepareRestore(ctx context.Context, cfg ServerConfig, path string, prepare func(context.Context, *Client) error) (_ *Restored, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	info, err := CheckSnapshot(path)
	if err != nil {
		return nil, err
	}
	r := &Restored{SnapshotInfo: info, cfg: cfg, fresh: cfg.DataDir + ".restoring"}
	r.Discard() // what a crash may have left
	defer func() {
		if err != nil {
			r.Discard()
		}
	}()
	err = snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath: path, Name: cfg.Name, OutputDataDir: r.fresh,
		PeerURLs: []string{cfg.peerURL()}, InitialCluster: cfg.Name + "=" + cfg.peerURL(), InitialClusterToken: cfg.token(),
		RevisionBump: revisionBump, MarkCompacted: true,
	})
	if err != nil {
		return nil, fmt.Errorf("restore %s: %w", path, err)
	}
	if err := prepareRestored(ctx, cfg, r.fresh, prepare); err != nil {
		return nil, fmt.Errorf("restore %s: %w", path, err)
	}
	return r, nil
}

// Commit puts the restored data in place of the server's, which must be stopped.
// The former data stays beside the new, at the path returned (empty if there was
// none).
func (r *Restored) Commit(ctx context.Context) (former string, err error) {
	if err := checkListen(ctx, r.cfg.Listen); err != nil {
		r.Discard()
		return "", fmt.Errorf("restore %s: the server must be stopped: %w", r.Path, err)
	}
	if former, err = setAside(r.cfg.DataDir, "before-restore", time.Now()); err != nil {
		return "", fmt.Errorf("restore %s: %w", r.Path, err)
	}
	err = os.Rename(r.fresh, r.cfg.DataDir)
	if err != nil && former != "" { // an etcd without data would begin with none
		if back := os.Rename(former, r.cfg.DataDir); back != nil {
			return former, fmt.Errorf("restore %s: %w; the former data is in %s: %w", r.Path, err, former, back)
		}
		return "", fmt.Errorf("restore %s: the former data stays: %w", r.Path, err)
	}
	if err != nil {
		return "", fmt.Errorf("restore %s: %w", r.Path, err)
	}
	return former, nil
}

// Discard removes what PrepareRestore built.
func (r *Restored) Discard() { _ = os.RemoveAll(r.fresh) }

// prepareRestored serves restored data on loopback while prepare works on it.
func prepareRestored(ctx context.Context, cfg ServerConfig, dir string, prepare func(context.Context, *Client) error) error {
	cfg.DataDir, cfg.SnapshotDir = dir, ""
	cfg.Listen = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	if own, ok := cfg.self(); ok { // alone for now, but known by its peer address
		own.Client = cfg.Listen
		cfg.Members = []Member{own}
	}
	s, err := start(ctx, cfg)
	if err != nil {
		return err
	}
	defer s.Close()
	return prepare(ctx, s.root)
}

// setAside moves a directory away, beside itself; the result is empty if there
// is none.
func setAside(dir, why string, now time.Time) (string, error) {
	to := dir + "." + why + "-" + now.UTC().Format(snapshotTime)
	err := os.Rename(dir, to)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return to, err
}
