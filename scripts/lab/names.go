//go:build linux

package lab

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/miekg/dns"
)

// noNames is a resolver at work.
type noNames struct {
	server *dns.Server
	done   chan struct{}
}

// Stop ends it. It may be called again.
func (s *noNames) Stop() error {
	_ = s.server.Shutdown() // an error: it has ended
	<-s.done
	return nil
}

// StartNoNames runs a resolver (UDP, port 53) on an address of the host that answers at once that there is no such name,
// whatever is asked. Without one, whoever asks for a reverse name waits until he loses patience, which on a real
// mail host hardly happens. Close ends it.
func (h *Host) StartNoNames(ctx context.Context, at netip.Addr) error {
	pc, err := h.ListenPacket(ctx, netip.AddrPortFrom(at, 53).String())
	if err != nil {
		return fmt.Errorf("listen for DNS: %w", err)
	}
	up := make(chan struct{})
	s := &noNames{done: make(chan struct{}), server: &dns.Server{
		PacketConn: pc, NotifyStartedFunc: func() { close(up) },
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeNameError))
		}),
	}}
	go func() { _ = s.server.ActivateAndServe(); close(s.done) }()
	<-up
	if err := h.lab.adopt(s); err != nil {
		_ = s.Stop()
		return err
	}
	return nil
}
