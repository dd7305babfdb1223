// Package usererr is the designed error: what failed, why, what to do next
// and who can act. Libraries wrap plainly; the stage that knows the remedy
// makes an [Error] of it.
package usererr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
)

// Class is who can act on an error. It chooses the exit code, which templates
// retry or allow on; see the table in docs/errors.md.
type Class int

// The classes. The zero value is our own bug, so that an error nobody
// designed never looks like the developer's fault.
const (
	Internal   Class = iota
	Project          // the repository's owner: faas.yml, code, a failing script
	Usage            // whoever typed the command
	External         // a service that a later try may find healthy
	Held             // an operator holds the release
	Unable           // this machine lacks what the command needs
	Config           // the platform's set-up, also a bad signature
	Superseded       // a newer pipeline has the word
	Restored         // traffic had moved and was put back
	Cancelled        // SIGTERM or a time limit
)

type class struct {
	exit int
	who  string
}

var classes = map[Class]class{
	Internal:   {70, "kuroko (our bug)"},
	Project:    {1, "project"},
	Usage:      {2, "project"},
	External:   {75, "external"},
	Held:       {76, "platform"},
	Unable:     {77, "platform"},
	Config:     {78, "platform"},
	Superseded: {79, "project"},
	Restored:   {80, "project"},
	Cancelled:  {143, "external"},
}

// Exit is the process exit code of the class.
func (c Class) Exit() int { return classes[c].exit }

// Who names the party that can act: project, platform or external.
func (c Class) Who() string { return classes[c].who }

// Error is an error somebody will read at the bottom of a job log. Everything
// but Code may be empty; the table fills What and Next.
type Error struct {
	Code Code
	What string // "read faas.yml"; default: the table's
	// Problems are all the reasons. When empty, Err is the reason.
	Problems []Problem
	Next     string // default: the table's
	// Class overrides the table's, when the cause decides who can act.
	Class Class
	Err   error
}

// Problem is one reason, with its own next step where it has one.
type Problem struct{ Why, Next string }

// Error is the one-line form, for wrapping and structured logs.
func (e *Error) Error() string {
	why := make([]string, 0, len(e.Problems))
	for _, p := range e.Problems {
		why = append(why, p.Why)
	}
	if len(why) == 0 && e.Err != nil {
		why = append(why, e.Err.Error())
	}
	if len(why) == 0 {
		return e.Title()
	}
	return e.Title() + ": " + strings.Join(why, "; ")
}

func (e *Error) Unwrap() error { return e.Err }

func (e *Error) class() Class {
	if e.Class != Internal {
		return e.Class
	}
	return table[e.Code].class
}

// Title is what failed, in the words of the message's first line.
func (e *Error) Title() string {
	if e.What != "" {
		return e.What
	}
	return table[e.Code].what
}

// DiskFull says that err is a disk or a quota without room.
func DiskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// Of finds the designed error in err's chain. An error nobody designed
// becomes [Internal], a cancelled context [Cancelled], a full disk its own.
func Of(err error) *Error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.Canceled):
		return &Error{Code: CodeCancelled, Err: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Code: CodeTimeout, Err: err}
	case DiskFull(err):
		return &Error{Code: CodeDiskFull, Err: err}
	}
	return &Error{Code: CodeInternal, Err: err}
}

// ClassOf is the class of err, which must not be nil.
func ClassOf(err error) Class { return Of(err).class() }

// Exit is the exit code for err; 0 for nil.
func Exit(err error) int {
	if err == nil {
		return 0
	}
	return ClassOf(err).Exit()
}

// Write renders err for people:
//
//	error: read faas.yml
//	  why:  line 7, column 14: functions.list.runtime: unknown runtime "nodejs19"
//	  next: use one of: nodejs18
//	  who:  project     code: E1001     https://docs.example/errors#e1001
//
// docs is the base URL of the help pages; without it the link is left out.
// Every line of a reason is indented, so that a cause of several lines (the
// end of a function's log) can't be mistaken for our own words.
func Write(w io.Writer, err error, docs string) {
	e := Of(err)
	fmt.Fprintf(w, "error: %s\n", e.Title())
	problems := e.Problems
	if len(problems) == 0 && e.Err != nil {
		problems = []Problem{{Why: e.Err.Error()}}
	}
	// The table's step is for errors that bring none of their own.
	next, usual := e.Next, table[e.Code].next
	for _, p := range problems {
		field(w, "why: ", p.Why)
		if p.Next != "" {
			field(w, "next:", p.Next)
			usual = ""
		}
	}
	if next == "" {
		next = usual
	}
	if next == "" && DiskFull(e.Err) { // whatever it was that wrote
		next = table[CodeDiskFull].next
	}
	if next != "" {
		field(w, "next:", next)
	}
	link := ""
	if docs != "" {
		link = "     " + strings.TrimSuffix(docs, "/") + "/errors#" + strings.ToLower(string(e.Code))
	}
	fmt.Fprintf(w, "  who:  %-10s  code: %s%s\n", e.class().Who(), e.Code, link)
}

func field(w io.Writer, label, text string) {
	for i, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		if i == 0 {
			fmt.Fprintf(w, "  %s %s\n", label, line)
		} else {
			fmt.Fprintf(w, "        %s\n", line)
		}
	}
}
