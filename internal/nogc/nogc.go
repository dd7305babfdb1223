// Package nogc lets a program begin without garbage collection. Before main a
// thousand packages make tables that stay for good: collecting them twice, as
// the small heap of a start has it, takes longer than anything of ours does
// there. Only programs import it, and end it first thing in main and TestMain.
package nogc

import (
	"runtime"
	"runtime/debug"
)

// Of the packages that are ready, Go initialises the first by name. This one
// imports next to nothing, so it comes before those that make the tables.
func init() {
	debug.SetGCPercent(1000) // from 40 MiB on: late, where somebody forgets End
	// A library links the profiler, so that stacks are walked for a profile of
	// the memory, which nobody reads.
	runtime.MemProfileRate = 0
}

// End begins to collect: percent is what GOGC means.
func End(percent int) { debug.SetGCPercent(percent) }
