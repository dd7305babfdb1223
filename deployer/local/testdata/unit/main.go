// Command unit is the container of the local target's tests: what a function
// image with our adapter shows to a target, and some misbehaviour.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	fmt.Println("starting", os.Getenv("K_REVISION"))
	switch os.Getenv("BEHAVE") {
	case "crash":
		for n := range 30 {
			fmt.Println("line", n)
		}
		fmt.Fprintln(os.Stderr, "boom")
		os.Exit(3)
	case "mute":
		time.Sleep(time.Hour)
	}
	if t := os.Getenv("FAAS_TIMER"); t != "" && os.Getenv("FAAS_FIRE") == "" {
		var timer struct{ Payload string }
		_ = json.Unmarshal([]byte(t), &timer)
		runJob(timer.Payload)
	}
	if event := os.Getenv("FAAS_EVENT"); event != "" {
		runJob(event)
	}
	if to := os.Getenv("FAAS_FIRE"); to != "" {
		fire(to)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/_faas/timer", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Header.Get("x-faas-timer") == "" || r.Header.Get("x-faas-timer") != os.Getenv("FAAS_TIMER_KEY") {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		fmt.Println("timer", os.Getenv("K_REVISION"), string(body))
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("/health/", func(w http.ResponseWriter, r *http.Request) {})
	mux.HandleFunc("/exit", func(http.ResponseWriter, *http.Request) { os.Exit(7) })
	mux.HandleFunc("/sleep", func(w http.ResponseWriter, r *http.Request) {
		ms, _ := strconv.Atoi(r.FormValue("ms"))
		time.Sleep(time.Duration(ms) * time.Millisecond)
		fmt.Fprint(w, os.Getenv("K_REVISION"))
	})
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "first")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		_, hostErr := os.Stat(r.FormValue("file"))
		writeErr := os.WriteFile("/tmp/x", nil, 0o600)
		if writeErr == nil {
			_ = os.Remove("/tmp/x")
		}
		dir, _ := os.Getwd()
		_ = json.NewEncoder(w).Encode(map[string]any{
			"revision": os.Getenv("K_REVISION"), "pid": os.Getpid(), "uid": os.Getuid(), "dir": dir,
			"path": r.URL.Path, "rawPath": r.URL.EscapedPath(), "query": r.URL.RawQuery, "host": r.Host,
			"prefix": r.Header.Get("X-Forwarded-Prefix"), "seen": hostErr == nil, "tmp": writeErr == nil,
			"unit": os.Getenv("FAAS_UNIT"), "service": os.Getenv("K_SERVICE"), "own": os.Getenv("GREETING"), "path_env": os.Getenv("PATH"),
		})
	})
	srv := &http.Server{Addr: "127.0.0.1:" + os.Getenv("PORT"), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if nonce := r.Header.Get("x-faas-nonce"); nonce != "" {
			w.Header().Set("x-faas-nonce", nonce)
			w.Header().Set("x-faas-revision", os.Getenv("K_REVISION"))
			w.Header().Set("x-faas-image", os.Getenv("FAAS_IMAGE"))
			w.Header().Set("x-faas-key", os.Getenv("FAAS_KEY"))
			return
		}
		mux.ServeHTTP(w, r)
	})}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		fmt.Println("draining")
		_ = srv.Shutdown(context.Background())
	}()
	if err := srv.ListenAndServe(); err != http.ErrServerClosed {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	time.Sleep(20 * time.Millisecond) // Shutdown's last answers
	fmt.Println("ended")
}

// runJob is the unit as a job.
func runJob(event string) {
	fmt.Println("ran", event)
	var asked struct{ Exit, Sleep int }
	if err := json.Unmarshal([]byte(event), &asked); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	time.Sleep(time.Duration(asked.Sleep) * time.Second)
	os.Exit(asked.Exit)
}

// fire makes a timer's call.
func fire(to string) {
	var where struct {
		URL     string
		Headers map[string]string
	}
	err := json.Unmarshal([]byte(to), &where)
	for n := 0; err == nil; n++ {
		req, _ := http.NewRequest(http.MethodPost, where.URL+"/_faas/timer", strings.NewReader(os.Getenv("FAAS_TIMER")+" for "+os.Getenv("FAAS_JOB_NAME")))
		for k, v := range where.Headers {
			req.Header.Set(k, v)
		}
		req.Header.Set("x-faas-timer", os.Getenv("FAAS_TIMER_KEY"))
		res, callErr := http.DefaultClient.Do(req)
		if callErr == nil && res.StatusCode == http.StatusNoContent {
			fmt.Println("called", where.URL)
			os.Exit(0)
		}
		fmt.Println(callErr, res)
		if n == 20 || callErr == nil {
			break
		}
		time.Sleep(time.Second)
	}
	os.Exit(1)
}
