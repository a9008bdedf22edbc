// SPDX-License-Identifier: Apache-2.0

// Command hawser-cni is the CNI plugin that container runtimes execute for each
// pod. See package cni.
package main

import (
	"os"

	"github.com/hawser-mesh/hawser/cni"
)

func main() { os.Exit(cni.Main()) }
