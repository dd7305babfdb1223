package stages

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/project"
)

// PlannedTimer is one timer's part of a plan.
type PlannedTimer struct {
	Function string `json:"function"`
	Unit     string `json:"unit"`
	// Timer is the schedule as it was written; Schedule the same as cron.
	Timer    string `json:"timer"`
	Schedule string `json:"schedule"`
	Timezone string `json:"timezone,omitempty"` // empty is UTC
	Overlap  string `json:"overlap,omitempty"`
	Action   Action `json:"action"`
	Why      string `json:"why,omitempty"`
	// Next are the times that follow the plan's own; none for a timer that
	// goes away, or never fires.
	Next []time.Time `json:"next,omitempty"`
}

// nextShown is how many of a timer's times a plan names.
const nextShown = 2

// timersOf are the project's timers as the deployer takes them, in an order
// that does not depend on the file's.
func timersOf(p *project.Project) []deployer.Timer {
	var out []deployer.Timer
	for _, u := range p.Units {
		for _, f := range u.Functions {
			seen := map[string]int{}
			for _, t := range f.Timers {
				d := deployer.Timer{
					Function: f.Name, Service: u.ServiceName, Name: t.Cron, Schedule: t.Schedule(),
					Timezone: t.Timezone, Payload: t.Payload, Overlap: t.Overlap,
				}
				if d.Name == "" {
					d.Name = "every " + span(t.Every.Std())
				}
				if d.Timezone == "UTC" {
					d.Timezone = "" // the default, written
				}
				at := d.Schedule + " " + d.Timezone
				d.Nth = seen[at]
				seen[at]++
				out = append(out, d)
			}
		}
	}
	slices.SortFunc(out, func(a, b deployer.Timer) int {
		return cmp.Or(cmp.Compare(a.Function, b.Function), cmp.Compare(a.Key(), b.Key()))
	})
	return out
}

// planTimers compares the timers with what is there. changes are the units',
// unbuilt those whose revisions have no names yet.
func planTimers(want deployer.Plan, changes []Change, unbuilt map[string]bool, state deployer.State, observed bool, now time.Time) []PlannedTimer {
	unit := map[string]string{}
	for _, u := range want.Units {
		unit[u.Name] = u.Unit
	}
	revisions := map[string]string{}
	for _, c := range changes {
		revisions[c.Service] = or(c.To, c.From)
		if unbuilt[c.Service] {
			revisions[c.Service] = "the new revision"
		}
	}
	was := map[string]deployer.Timer{}
	if state.Live != nil {
		for _, t := range state.Live.Timers {
			was[t.Key()] = t
		}
		for _, u := range state.Live.Units {
			if unit[u.Spec.Name] == "" {
				unit[u.Spec.Name] = u.Unit
			}
		}
	}
	decided := map[string]deployer.TimerChange{}
	all := slices.Clone(want.Timers)
	for _, c := range deployer.DecideTimers(want.Timers, revisions, state) {
		decided[c.Key] = c
		if c.Action != deployer.Remove {
			continue
		}
		t, known := was[c.Key]
		if !known {
			i := slices.IndexFunc(state.Timers, func(o deployer.ObservedTimer) bool { return o.Key == c.Key })
			o := state.Timers[i]
			t = deployer.Timer{Function: o.Function, Service: o.Service, Name: o.Schedule, Schedule: o.Schedule, Timezone: o.Timezone}
		}
		all = append(all, t)
		decided[t.Key()] = c
	}
	var out []PlannedTimer
	for _, t := range all {
		c := decided[t.Key()]
		p := PlannedTimer{
			Function: t.Function, Unit: unit[t.Service], Timer: t.Name, Schedule: t.Schedule, Timezone: t.Timezone, Overlap: t.Overlap,
			Action: Action(c.Action), Why: c.Why,
		}
		if !observed {
			p.Action, p.Why = Unknown, ""
		}
		if c.Action == deployer.Unchanged || c.Action == deployer.Create && state.Live == nil {
			p.Why = ""
		}
		if c.Action == deployer.Remove {
			p.Why = "no longer in faas.yml"
		} else {
			p.Next = nextTimes(t, now)
		}
		out = append(out, p)
	}
	return out
}

// nextTimes are the timer's next times after now, in its own time zone; none
// where there is no now.
func nextTimes(t deployer.Timer, now time.Time) []time.Time {
	s, err := cron.ParseStandard("CRON_TZ=" + or(t.Timezone, "UTC") + " " + t.Schedule)
	zone, zoneErr := time.LoadLocation(or(t.Timezone, "UTC"))
	if err != nil || zoneErr != nil || now.IsZero() {
		return nil
	}
	now = now.In(zone)
	var out []time.Time
	for range nextShown {
		if now = s.Next(now); now.IsZero() {
			break // 30 February
		}
		out = append(out, now)
	}
	return out
}

// timerRows are the plan's timers: action, function, when, next, why.
func timerRows(list []PlannedTimer) [][]string {
	var rows [][]string
	for _, t := range list {
		when := t.Timer
		if t.Timezone != "" {
			when += " " + t.Timezone
		}
		if t.Overlap != "" {
			when += ", overlap " + t.Overlap
		}
		rows = append(rows, []string{string(t.Action), t.Function, when, nextText(t.Next), t.Why})
	}
	return rows
}

func nextText(next []time.Time) string {
	if len(next) == 0 {
		return ""
	}
	text := make([]string, len(next))
	for i, n := range next {
		text[i] = n.Format("2006-01-02 15:04 MST")
	}
	return "next " + strings.Join(text, ", ")
}
