// Command unit is the container of the Knative target's tests: what a function
// image with our adapter shows to a target, and some misbehaviour.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
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
	mux := http.NewServeMux()
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
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
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
