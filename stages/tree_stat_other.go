//go:build !linux

package stages

import "io/fs"

// Elsewhere than on Linux every file is read.

func statOf(fs.FileInfo) (fileStat, bool) { return fileStat{}, false }
func ours(fs.FileInfo) bool               { return false }
func localFiles(string) bool              { return false }
func (knownSums) look() []bool            { return nil }
