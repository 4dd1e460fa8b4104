package metrics

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

// Bounds on whoever scrapes.
const (
	maxConns    = 16
	maxScrapes  = 2 // at once; others are told to come again
	maxHeader   = 8 << 10
	readTime    = 5 * time.Second
	writeTime   = 15 * time.Second
	idleTime    = 90 * time.Second // Prometheus keeps its connection, and scrapes once a minute
	goodbyeTime = time.Second
)

// Serve answers GET /metrics on l until ctx ends, and closes l. The log gets what is wrong with requests, at debug level.
func Serve(ctx context.Context, l net.Listener, from prometheus.Gatherer, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           handler(from),
		ReadHeaderTimeout: readTime,
		ReadTimeout:       readTime,
		WriteTimeout:      writeTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(netutil.LimitListener(l, maxConns)) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.Background(), goodbyeTime)
	defer cancel()
	if srv.Shutdown(end) != nil {
		srv.Close()
	}
	<-done
	return nil
}

func handler(from prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(from, promhttp.HandlerOpts{
		MaxRequestsInFlight: maxScrapes,
		DisableCompression:  true, // it costs more than all the rest
		ErrorHandling:       promhttp.ContinueOnError,
	}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "mxshield: the figures are at /metrics\n") // who does not read it has not asked for it
	})
	return mux
}

// Warning says what is wrong with an address to listen on, empty if nothing is.
func Warning(listen net.Addr) string {
	if a, ok := listen.(*net.TCPAddr); ok && a.IP.IsLoopback() {
		return ""
	}
	return fmt.Sprintf("the metrics on %s are there for everybody who reaches that address: take 127.0.0.1, or let a firewall keep strangers off", listen)
}
