// Command unit is the container of the Knative target's tests: what a function
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
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	fmt.Println("starting", os.Getenv("K_REVISION"))
	switch os.Getenv("BEHAVE") {
	case "crash":
		// Not many lines: a container runtime reads standard output and error
		// apart, and keeps no order between what comes at once.
		fmt.Fprintln(os.Stderr, "boom")
		os.Exit(3)
	case "mute":
		time.Sleep(time.Hour)
	case "greedy":
		var all [][]byte
		for {
			b := make([]byte, 8<<20)
			for i := range b {
				b[i] = byte(i)
			}
			all = append(all, b)
			time.Sleep(time.Millisecond * time.Duration(len(all)%2))
		}
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
	count := offerCounts()
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
	mux.HandleFunc("/health/", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/env/{name}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, os.Getenv(r.PathValue("name")))
	})
	mux.HandleFunc("/file/", func(w http.ResponseWriter, r *http.Request) {
		b, err := os.ReadFile(strings.TrimPrefix(r.URL.Path, "/file"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
		}
		w.Write(b)
	})
	every, _ := strconv.ParseInt(os.Getenv("FAIL"), 10, 64) // one of so many requests fails
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if n := count.Add(1); every > 0 && n%every == 0 {
			failed.Add(1)
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, os.Getenv("K_REVISION"))
	})
	srv := &http.Server{Addr: ":" + os.Getenv("PORT"), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-ctx.Done()
		fmt.Println("draining")
		_ = srv.Shutdown(context.Background())
	}()
	if err := srv.ListenAndServe(); err != http.ErrServerClosed {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	<-ended
}

// failed counts the requests that were answered with a 500.
var failed atomic.Int64

// offerCounts says on the adapter's own port how many requests there were.
func offerCounts() *atomic.Int64 {
	var all atomic.Int64
	if port := os.Getenv("FAAS_METRICS_PORT"); port != "" {
		go http.ListenAndServe(":"+port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			bad := failed.Load()
			fmt.Fprintf(w, "# TYPE faas_requests_total counter\nfaas_requests_total{code=\"2xx\"} %d\nfaas_requests_total{code=\"5xx\"} %d\n", all.Load()-bad, bad)
		}))
	}
	return &all
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
