package main

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/project"
)

// gateway knows where each function answers, and switches a function once its
// new unit is proven, as a cluster's gateway does. It learns of that from the
// deploy's log.
type gateway struct {
	client *http.Client
	unit   func(name string) string // its address

	mu    sync.RWMutex
	where map[string]string // function → unit

	to   map[string][]string // unit → functions, of the release under way
	line bytes.Buffer
}

// Write takes the deploy's log.
func (g *gateway) Write(p []byte) (int, error) {
	g.line.Write(p)
	for {
		line, err := g.line.ReadString('\n')
		if err != nil {
			g.line.Reset()
			g.line.WriteString(line)
			return len(p), nil
		}
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "check: ")
		unit, _, ok2 := strings.Cut(rest, ": the route answers with ")
		if !ok || !ok2 {
			continue
		}
		// Requests under way to the old place end first.
		g.mu.Lock()
		for _, f := range g.to[unit] {
			g.where[f] = unit
		}
		g.mu.Unlock()
	}
}

func (g *gateway) ask(function string) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	url := g.unit(g.where[function]) + "/" + function
	status, body, err := get(g.client, url)
	if want := fmt.Sprintf("%q", function); err != nil || status != 200 || !strings.Contains(body, want) {
		return fmt.Errorf("GET %s: %d %s %v", url, status, body, err)
	}
	return nil
}

// A function moves between all three modes under load: its route is never
// without an answer.
func TestMoveUnderLoad(t *testing.T) {
	l := newLab(t)
	moveUnderLoad(l, http.DefaultClient, newTree(), func(unit string) string { return l.services.TargetURL + "/shop-" + unit })
}

// moveUnderLoad moves the tree's functions through all the modes, and asks for
// each of them meanwhile, at the units' addresses.
func moveUnderLoad(l *lab, client *http.Client, tree *tree, unit func(name string) string) {
	t := l.t
	t.Helper()
	tree.mode = "independent"
	l.write(tree.files())
	first := l.apply()
	g := &gateway{client: client, unit: unit, where: map[string]string{}, to: map[string][]string{}}
	for _, u := range first.Result.URLs {
		g.where[u.Function] = u.Unit
	}

	var asked, failed atomic.Int64
	var example atomic.Value
	stop := make(chan struct{})
	var clients sync.WaitGroup
	start := time.Now()
	const perSecond = 200
	tick := time.NewTicker(time.Second / perSecond)
	defer tick.Stop()
	for i := range 8 {
		clients.Go(func() {
			for n := i; ; n++ {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				asked.Add(1)
				if err := g.ask(tree.functions[n%len(tree.functions)]); err != nil {
					failed.Add(1)
					example.Store(err.Error())
				}
			}
		})
	}
	var moves []string
	for _, mode := range []string{"aggregated", "mixed", "independent", "mixed", "aggregated", "independent"} {
		before := maps.Clone(g.where)
		tree.mode = mode
		files := tree.files()
		l.write(files)
		p, err := project.Parse([]byte(files["faas.yml"]), project.Options{Runtimes: []project.RuntimeInfo{{Name: "nodejs18", Language: "node"}}})
		if err != nil {
			t.Fatal(err)
		}
		to := map[string][]string{}
		for _, u := range p.Units {
			for _, f := range u.Functions {
				to[u.Name] = append(to[u.Name], f.Name)
			}
		}
		g.mu.Lock()
		g.to = to
		g.mu.Unlock()
		l.remove(".faas")
		if _, err := l.runner(g).Run(t.Context(), []string{"prepare", "build", "deploy"}); err != nil {
			t.Fatal(err)
		}
		moved := 0
		g.mu.RLock()
		for f, at := range g.where {
			if at != before[f] {
				moved++
			}
		}
		g.mu.RUnlock()
		moves = append(moves, fmt.Sprintf("%s: %d", mode, moved))
		if moved == 0 {
			t.Errorf("mode %s: no function moved", mode)
		}
	}
	close(stop)
	clients.Wait()
	reached := float64(asked.Load()) / time.Since(start).Seconds()
	t.Logf("%d requests, %.0f a second (asked for %d), functions moved: %s", asked.Load(), reached, perSecond, strings.Join(moves, ", "))
	if failed.Load() == 0 && reached < 1 {
		t.Errorf("no request failed, but this machine asks too few to say anything: %.1f a second", reached)
	}
	if failed.Load() > 0 {
		t.Errorf("%d of %d requests failed, such as %v", failed.Load(), asked.Load(), example.Load())
	}
}
