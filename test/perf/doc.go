// SPDX-License-Identifier: Apache-2.0

// Package perf measures Hawser beside what it is compared with, in one run, and
// asserts nothing about time. Run it with:
//
//	make bench
//	go test ./test/perf/... -run '^TestPerf' -v -args -perf
//
// Each test prints a table with the goal beside each number, and writes a JSON
// file with the raw numbers of every round below results/runs/ (not kept in the
// repository). With -record the run also replaces results/KIND.json, which is.
//
// Start reading with report_test.go (what a result is), then traffic_test.go
// (the measuring client and server, programs of their own), shapes_test.go (the
// paths that are compared) and one file per kind of measurement.
//
// How numbers are taken: what is compared runs in the same process and machine
// state, in turns (A-B-C, A-B-C, …), five rounds or more; a cell is the median of
// the rounds, with the lowest and highest beside it. Absolute figures belong to
// the machine, ratios to Hawser.
//
// Federation and identities (TestPerfFederation…, TestPerfIdentities) run real
// programs, each in a cgroup of its own, in network namespaces that the test
// makes (inside_test.go). cluster_test.go is an API server with its etcd,
// node_test.go an agent, peers_test.go the generator that plays the remote
// clusters. HAWSER_PERF_LOGS=DIR keeps what the programs log, HAWSER_PERF_DEBUG=1
// shows why a played cluster lost its stream. docs/guide/performance.md has the
// results beside the goals.
//
// The datapath is timed in two ways. hotpath_test.go repeats one packet 100,000
// times (BPF_PROG_TEST_RUN), all in the caches, as the peer was measured; the
// programs are those of test/perf/bpf, the node's own source with a tunnel key in
// place of the tunnel's headers, which a second round could not write.
// programs_test.go and connect_test.go read the kernel's statistics under real
// traffic, which include what other code did to the caches. Both take off what an
// empty program costs in the same place, and give multiples of two hash lookups.
// changes_test.go changes what others are concerned by meanwhile. table_rows_test.go
// has the rows of the page's table, with the series that they show and their limits.
//
// Out of scope: whether anything works (test/e2e, test/bpf).
package perf
