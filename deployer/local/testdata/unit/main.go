// Command unit is the container of the local target's tests: what a function
// image with our adapter shows to a target, and some misbehaviour.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strconv"
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
	mux := http.NewServeMux()
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
