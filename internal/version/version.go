// SPDX-License-Identifier: Apache-2.0

// Package version is the version that the programs report.
package version

import "runtime/debug"

// Version is set by the linker (see the Makefile). Without that it is the
// revision that the Go tool recorded.
var Version = ""

// String is the version of this program: what the linker set, else the VCS
// revision, else "dev".
func String() string {
	if Version != "" {
		return Version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "dev"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return s.Value[:12]
		}
	}
	return "dev"
}
