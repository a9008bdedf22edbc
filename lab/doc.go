// SPDX-License-Identifier: Apache-2.0

// Package lab makes whole meshes on one machine: clusters of real agents and
// API servers in network namespaces, with pods made through the real CNI
// plugin. Start reading at Up and Down.
//
// What a lab named L consists of, and nothing else:
//
//	/run/netns/hwl-L-*         fabric, control, node and pod namespaces
//	<cgroup2>/hawser-lab-L/    a directory per node and pod, every process in one
//	/run/hawser-lab/L/         a tmpfs: state, data, sockets, logs, and a bpffs
//	                           on bpf/ with a directory per node
//
// All of it is found by name, so Down needs no record to remove it, and proves
// afterwards that nothing is left. The record (state.json) is written before a
// thing is made; it serves Status, Exec, AddPod and the drills.
//
// Out of scope: machines, containers and kernels other than this one.
package lab
