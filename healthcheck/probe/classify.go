package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// Phases of a probe.
const (
	phaseResolve = "resolve"
	phaseConnect = "connect"
	phaseTLS     = "tls handshake"
	phaseRequest = "request"
	phaseAnswer  = "answer"
	phaseBody    = "body"
)

// localError is an error of this host, whatever its number says.
type localError struct{ err error }

func (e localError) Error() string { return e.err.Error() }
func (e localError) Unwrap() error { return e.err }

// failed makes a result of an error that occurred in phase. expected says what
// would have been a success.
func failed(ctx context.Context, phase, expected string, err error) healthcheck.Result {
	class := classify(err)
	if errors.Is(ctx.Err(), context.Canceled) {
		class = healthcheck.Local // whoever asked gave up; the error is only its echo
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		phase = phaseResolve
	}
	if phase == phaseTLS && class == healthcheck.Protocol {
		class = healthcheck.TLS
	}
	return healthcheck.Result{Class: class, Phase: phase, Expected: expected, Found: found(class, err), Advice: advice(class, phase)}
}

func classify(err error) healthcheck.Class {
	var (
		local  localError
		dns    *net.DNSError
		verify *tls.CertificateVerificationError
		record tls.RecordHeaderError
		op     *net.OpError
		host   x509.HostnameError
		ca     x509.UnknownAuthorityError
		cert   x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &local), is(err, localErrnos...), errors.Is(err, context.Canceled):
		return healthcheck.Local
	case errors.As(err, &dns):
		return healthcheck.DNS
	case errors.As(err, &verify), errors.As(err, &record),
		errors.As(err, &host), errors.As(err, &ca), errors.As(err, &cert),
		errors.As(err, &op) && op.Op == "remote error": // an alert
		return healthcheck.TLS
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), is(err, syscall.ETIMEDOUT):
		return healthcheck.Timeout
	case is(err, syscall.ECONNREFUSED):
		return healthcheck.Refused
	case is(err, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE):
		return healthcheck.Reset
	case is(err, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN):
		return healthcheck.Unreachable
	default:
		return healthcheck.Protocol
	}
}

// localErrnos are errors for which no target can be blamed: out of files,
// memory, ports, or a local rule or setting that forbids it.
var localErrnos = []syscall.Errno{
	syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EADDRINUSE,
	syscall.EAGAIN, syscall.EACCES, syscall.EPERM, syscall.EAFNOSUPPORT, syscall.ENETDOWN, syscall.EINVAL,
}

func is(err error, numbers ...syscall.Errno) bool {
	var n syscall.Errno
	if !errors.As(err, &n) {
		return false
	}
	for _, m := range numbers {
		if n == m {
			return true
		}
	}
	return false
}

// found tells an error in the fewest words that still identify it.
func found(class healthcheck.Class, err error) string {
	switch class {
	case healthcheck.Timeout:
		return "no answer before the timeout"
	case healthcheck.Refused:
		return "connection refused"
	case healthcheck.Reset:
		return "connection reset"
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "the connection was closed early"
	}
	var record tls.RecordHeaderError
	if errors.As(err, &record) && string(record.RecordHeader[:]) == "HTTP/" {
		return "an answer in plain HTTP"
	}
	text := err.Error()
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		text = op.Err.Error()
	}
	return quote(text)
}

func advice(class healthcheck.Class, phase string) string {
	switch class {
	case healthcheck.Refused:
		return "check that the service runs and listens on this address and port"
	case healthcheck.Timeout:
		if phase == phaseConnect {
			return "check that the host is up, and that no firewall drops this port"
		}
		return "the service accepts but does not answer in time: check its load, or raise the timeout"
	case healthcheck.Unreachable:
		return "check the route from this host to the target"
	case healthcheck.Reset:
		return "check that the service speaks this protocol on this port, and its limits"
	case healthcheck.DNS:
		return "check the name, and this host's resolvers"
	case healthcheck.TLS:
		return "check the certificate, its names and its authority, and that the port speaks TLS"
	case healthcheck.Local:
		return "check this host's limits (files, local ports, memory), addresses and outgoing firewall rules"
	default:
		return ""
	}
}

// quote makes what a peer sent fit for a line of a log.
func quote(s string) string {
	const most = 120
	cut := len(s) > most
	if cut {
		s = s[:most]
	}
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if cut {
		s += "..."
	}
	return strings.TrimSpace(s)
}
