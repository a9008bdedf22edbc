// SPDX-License-Identifier: Apache-2.0

// Package objects holds the compiled eBPF programs and their generated Go
// loaders, made from bpf/. Nothing in it is written by hand except this file;
// datapath/loader is the way to use it.
package objects

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package objects -output-stem hawser Hawser ../../bpf/hawser.c -- -I../../bpf -O2 -g -mcpu=v3 -Wall -Wextra -Werror
