// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sys/unix"
)

// etcd does not survive a disk that is full in the middle of a write. So a member
// stops taking writes while it still has room for what it must write itself: it
// raises the alarm that also tells of a database at its quota, and ends it when
// there is room again.
const (
	// DefaultDiskReserve is one segment of the log, which etcd takes whole, and
	// what the database grows by at a time.
	DefaultDiskReserve = 96 << 20
	diskEvery          = time.Second
	// roomier is how much more than the reserve must be free before writes are
	// taken again, in percent.
	roomier = 125
)

// DiskInfo is the room on the disk of a member's data.
type DiskInfo struct {
	Dir     string
	Free    int64
	Reserve int64 // below it writes are refused
	Low     bool  // they are
}

func (d DiskInfo) problem() string {
	return fmt.Sprintf("the disk of %s has %d MiB left, less than the %d MiB that etcd needs to stay whole: writes are refused",
		d.Dir, d.Free>>20, d.Reserve>>20)
}

const diskCure = "make room on that disk, or move --data-dir to a larger one; writes are taken again by themselves, traffic goes on meanwhile"

// diskFree is what an unprivileged process could still write below dir, or where
// dir is going to be.
func diskFree(dir string) (int64, error) {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	for errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		err = unix.Statfs(dir, &st)
	}
	if err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// checkDisk says why a store cannot be made: an existing one may open, to be
// read and to be made smaller.
func checkDisk(cfg ServerConfig) error {
	if hasData(cfg.DataDir) {
		return nil
	}
	free, err := diskFree(cfg.DataDir)
	if err != nil {
		return fmt.Errorf("start etcd in %s: %w", cfg.DataDir, err)
	}
	if d := (DiskInfo{Dir: cfg.DataDir, Free: free, Reserve: cfg.DiskReserve}); free < cfg.DiskReserve {
		return fmt.Errorf("start etcd in %s: %s; make room on that disk, or choose another --data-dir", cfg.DataDir, d.problem())
	}
	return nil
}

// explainDisk adds to why etcd did not start that the disk is full, when it is: it
// needs a moment's room for its log even to read it.
func explainDisk(cfg ServerConfig, why error) error {
	free, err := diskFree(cfg.DataDir)
	if d := (DiskInfo{Dir: cfg.DataDir, Free: free, Reserve: cfg.DiskReserve}); err == nil && free < cfg.DiskReserve {
		return fmt.Errorf("%w; %s: make room on that disk and start again", why, d.problem())
	}
	return why
}

// watchDisk refuses writes while the disk is nearly full, and has history make
// room before the quota is used up, until the context ends.
func (s *Server) watchDisk(ctx context.Context) {
	for {
		if err := s.lookAtDisk(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("look at the disk of etcd", "directory", s.cfg.DataDir, "error", err)
		}
		if err := s.boundHistory(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("bound the history of etcd", "error", err)
		}
		if sleep(ctx, s.cfg.DiskEvery) != nil {
			return
		}
	}
}

func (s *Server) lookAtDisk(ctx context.Context) error {
	free, err := diskFree(s.cfg.DataDir)
	if err != nil {
		return err
	}
	was := s.diskInfo()
	d := DiskInfo{Dir: s.cfg.DataDir, Free: free, Reserve: s.cfg.DiskReserve, Low: free < s.cfg.DiskReserve}
	if was.Low && free < s.cfg.DiskReserve/100*roomier {
		d.Low = true
	}
	switch {
	case d.Low:
		if err := s.alarm(ctx, pb.AlarmRequest_ACTIVATE); err != nil {
			return err
		}
		if !was.Low {
			s.cfg.Log.Error("etcd takes no writes", "error", d.problem(), "cure", diskCure)
		}
	case was.Low:
		// One at its quota has the alarm for that, too.
		if st := s.etcd.Server.Backend().Size(); float64(st) < float64(s.cfg.QuotaBytes)*healed {
			if err := s.alarm(ctx, pb.AlarmRequest_DEACTIVATE); err != nil {
				return err
			}
		}
		s.cfg.Log.Warn("there is room on etcd's disk again; it takes writes", "directory", d.Dir, "free", d.Free)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disk = d
	return nil
}

func (s *Server) diskInfo() DiskInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.disk
}

// alarm raises or ends this member's alarm, if it is not so already.
func (s *Server) alarm(ctx context.Context, do pb.AlarmRequest_AlarmAction) error {
	own := uint64(s.etcd.Server.MemberID())
	there := false
	for _, a := range s.etcd.Server.Alarms() {
		there = there || a.MemberID == own && a.Alarm == pb.AlarmType_NOSPACE
	}
	if there == (do == pb.AlarmRequest_ACTIVATE) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.root.timeout)
	defer cancel()
	if _, err := s.etcd.Server.Alarm(ctx, &pb.AlarmRequest{Action: do, MemberID: own, Alarm: pb.AlarmType_NOSPACE}); err != nil {
		return fmt.Errorf("change the alarm of etcd member %s: %w", s.cfg.Name, err)
	}
	return nil
}
