package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// What a kernel or a library can answer, and whom it blames.
func TestClassify(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want healthcheck.Class
	}{
		{syscall.ECONNREFUSED, healthcheck.Refused},
		{syscall.ETIMEDOUT, healthcheck.Timeout},
		{os.ErrDeadlineExceeded, healthcheck.Timeout},
		{context.DeadlineExceeded, healthcheck.Timeout},
		{syscall.ECONNRESET, healthcheck.Reset},
		{syscall.ECONNABORTED, healthcheck.Reset},
		{syscall.EPIPE, healthcheck.Reset},
		{syscall.EHOSTUNREACH, healthcheck.Unreachable},
		{syscall.ENETUNREACH, healthcheck.Unreachable},
		{syscall.EHOSTDOWN, healthcheck.Unreachable},
		{&net.DNSError{Err: "no such host", Name: "x", IsNotFound: true}, healthcheck.DNS},
		{&net.DNSError{Err: "i/o timeout", Name: "x", IsTimeout: true}, healthcheck.DNS},
		{io.EOF, healthcheck.Protocol},
		{io.ErrUnexpectedEOF, healthcheck.Protocol},
		{errors.New("whatever"), healthcheck.Protocol},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}, healthcheck.TLS},

		{syscall.EMFILE, healthcheck.Local},
		{syscall.ENFILE, healthcheck.Local},
		{syscall.ENOBUFS, healthcheck.Local},
		{syscall.ENOMEM, healthcheck.Local},
		{syscall.EADDRNOTAVAIL, healthcheck.Local},
		{syscall.EADDRINUSE, healthcheck.Local},
		{syscall.EPERM, healthcheck.Local},
		{syscall.EACCES, healthcheck.Local},
		{syscall.EAFNOSUPPORT, healthcheck.Local},
		{syscall.ENETDOWN, healthcheck.Local},
		{context.Canceled, healthcheck.Local},
		{localError{syscall.ECONNREFUSED}, healthcheck.Local},
	} {
		for _, err := range []error{tt.err, fmt.Errorf("wrapped: %w", tt.err), &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", tt.err)}} {
			if errors.As(tt.err, new(*net.OpError)) {
				err = fmt.Errorf("once more: %w", tt.err)
			}
			if got := classify(err); got != tt.want {
				t.Errorf("%v is %v, want %v", err, got, tt.want)
			}
		}
	}
}

func TestFailedTellsThePhase(t *testing.T) {
	res := failed(t.Context(), phaseConnect, "x", &net.DNSError{Err: "no such host", Name: "a"})
	outcome{class: healthcheck.DNS, phase: "resolve", expected: "x", found: "no such host", advice: "resolvers"}.check(t, res)
	res = failed(t.Context(), phaseTLS, "x", errors.New("tls: nonsense"))
	outcome{class: healthcheck.TLS, phase: "tls handshake", found: "nonsense"}.check(t, res)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	res = failed(ctx, phaseAnswer, "x", os.ErrDeadlineExceeded)
	outcome{class: healthcheck.Local, phase: "answer"}.check(t, res)
}

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "",
		"plain":                   "plain",
		" a\r\nb\x00 ":            "a  b",
		"\u2028x\u2029":           "x",
		"\xff\xfe":                "?",
		"\x1b[31mred":             "[31mred",
		strings.Repeat("x", 200):  strings.Repeat("x", 120) + "...",
		strings.Repeat("é", 100):  strings.Repeat("é", 60) + "...",
		strings.Repeat("日本", 100): strings.Repeat("日本", 20) + "...",
	} {
		if got := quote(in); got != want {
			t.Errorf("%q gives %q, want %q", in, got, want)
		}
	}
}
