// Package project is faas.yml: what a developer wrote, checked as a whole,
// defaults applied, positions kept.
//
// Parsing is strict. An unknown key, a planned key and a value out of range
// are problems with line and column; all problems are reported at once.
package project
