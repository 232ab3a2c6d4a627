package probe

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
)

func newSMTP(t testing.TB, cfg SMTPConfig) *SMTP {
	t.Helper()
	if cfg.Hello == "" {
		cfg.Hello = "probe.example"
	}
	p, err := NewSMTP(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// mail greets, then answers each command with the reply for its first word.
// With cfg it can be asked to STARTTLS.
func mail(greeting string, replies map[string]string, cfg *tls.Config) func(net.Conn) {
	return func(c net.Conn) {
		fmt.Fprint(c, greeting)
		in := bufio.NewReader(c)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			verb, _, _ := strings.Cut(strings.TrimSpace(line), " ")
			reply, ok := replies[verb]
			if !ok {
				hang(c)
				return
			}
			fmt.Fprint(c, reply)
			if verb == "STARTTLS" && cfg != nil && strings.HasPrefix(reply, "220") {
				s := tls.Server(c, cfg)
				if s.Handshake() != nil {
					return
				}
				defer s.Close()
				c, in = s, bufio.NewReader(s)
			}
		}
	}
}

const greeting = "220 mx.example ESMTP\r\n"

func replies(changes ...string) map[string]string {
	r := map[string]string{
		"EHLO": "250-mx.example\r\n250-SIZE 1000\r\n250 starttls\r\n", "STARTTLS": "220 go on\r\n", "QUIT": "221 bye\r\n",
	}
	for i := 0; i < len(changes); i += 2 {
		r[changes[i]] = changes[i+1]
	}
	return r
}

func TestSMTP(t *testing.T) {
	a := newAuthority(t)
	serving := &tls.Config{Certificates: []tls.Certificate{a.issue(3*day, "127.0.0.1")}}
	other := &tls.Config{Certificates: []tls.Certificate{a.issue(long, "other.example")}}
	start := SMTPConfig{TLS: &TLSConfig{Roots: a.pool()}}
	badStatus := func(expected, found string) outcome {
		return outcome{class: healthcheck.BadStatus, phase: "answer", expected: expected, found: found}
	}
	for _, tt := range []struct {
		name   string
		cfg    SMTPConfig
		server func(net.Conn)
		want   outcome
	}{
		{"greets", SMTPConfig{}, mail(greeting, replies(), nil), fine},
		{"greets in two lines", SMTPConfig{}, mail("220-hello\r\n220 mx\r\n", replies(), nil), fine},
		{"leaves without a word", SMTPConfig{}, mail(greeting, replies("QUIT", ""), nil), fine},
		{"STARTTLS", start, mail(greeting, replies(), serving), outcome{warning: "certificate ends on"}},
		{"too busy", SMTPConfig{}, mail("421 too many connections\r\n", nil, nil), badStatus("a greeting with 220", "421 too many connections")},
		{"no service", SMTPConfig{}, mail("554-no\r\n554 SMTP here\r\n", nil, nil), badStatus("a greeting", "554 no SMTP here")},
		{"does not like the name", SMTPConfig{}, mail(greeting, replies("EHLO", "550 who?\r\n"), nil), badStatus("an answer to EHLO probe.example with 250", "550 who?")},
		{"no STARTTLS", start, mail(greeting, replies("EHLO", "250 mx\r\n"), nil), outcome{class: healthcheck.BadBody, phase: "answer", expected: "STARTTLS", found: "mx"}},
		{"STARTTLS fails", start, mail(greeting, replies("STARTTLS", "454 later\r\n"), nil), badStatus("an answer to STARTTLS with 220", "454 later")},
		{"wrong name", start, mail(greeting, replies(), other), outcome{class: healthcheck.TLS, phase: "tls handshake", found: "127.0.0.1"}},
		{"more in the clear after STARTTLS", start, mail(greeting, replies("STARTTLS", "220 go on\r\n250 injected\r\n"), nil), outcome{class: healthcheck.Protocol, phase: "answer", found: "in the clear"}},
		{"no TLS after STARTTLS", start, mail(greeting, replies("STARTTLS", "220 go on\r\n"), nil), outcome{class: healthcheck.Timeout, phase: "tls handshake"}},
		{"not SMTP", SMTPConfig{}, func(c net.Conn) { fmt.Fprint(c, "SSH-2.0-OpenSSH\r\n"); hang(c) }, outcome{class: healthcheck.Protocol, phase: "answer", found: "SSH"}},
		{"hangs", SMTPConfig{}, hang, outcome{class: healthcheck.Timeout, phase: "answer"}},
		{"hangs in the greeting", SMTPConfig{}, func(c net.Conn) { fmt.Fprint(c, "220-wait"); hang(c) }, outcome{class: healthcheck.Timeout, phase: "answer"}},
		{"hangs after the greeting", SMTPConfig{}, mail(greeting, nil, nil), outcome{class: healthcheck.Timeout, phase: "answer", expected: "EHLO"}},
		{"closes", SMTPConfig{}, func(net.Conn) {}, outcome{class: healthcheck.Protocol, phase: "answer", found: "closed early"}},
		{"closes in a reply", SMTPConfig{}, func(c net.Conn) { fmt.Fprint(c, "220-hel") }, outcome{class: healthcheck.Protocol, phase: "answer", found: "closed early"}},
		{"resets", SMTPConfig{}, func(c net.Conn) { fmt.Fprint(c, greeting); reset(c) }, outcome{class: healthcheck.Reset, phase: "answer"}},
		{"endless greeting", SMTPConfig{}, func(c net.Conn) {
			for {
				if _, err := io.WriteString(c, "220-hello again\r\n"); err != nil {
					return
				}
			}
		}, outcome{class: healthcheck.Protocol, phase: "answer", found: "more than"}},
		{"endless line", SMTPConfig{}, func(c net.Conn) {
			for {
				if _, err := io.WriteString(c, "220 hello again"); err != nil {
					return
				}
			}
		}, outcome{class: healthcheck.Protocol, phase: "answer", found: "more than"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ask(t, newSMTP(t, tt.cfg), serve(t, tt.server).addr, tt.want)
		})
	}
	implicit := newSMTP(t, SMTPConfig{TLS: start.TLS, Implicit: true})
	ask(t, implicit, secure(t, serving, mail(greeting, replies(), nil)).addr, outcome{warning: "certificate ends on"})
	ask(t, implicit, secure(t, other, hang).addr, outcome{class: healthcheck.TLS, phase: "tls handshake"})
	ask(t, newSMTP(t, SMTPConfig{}), nobody(t), outcome{class: healthcheck.Refused, phase: "connect"})
	for _, cfg := range []SMTPConfig{{Hello: "a b"}, {Implicit: true}} {
		if _, err := NewSMTP(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
	if p, err := NewSMTP(SMTPConfig{}); err != nil || p.cfg.Hello == "" {
		t.Errorf("%+v, %v", p, err)
	}
}

// duplex is a connection whose other side says what it says.
type duplex struct {
	net.Conn
	in *bytes.Reader
}

func (d duplex) Read(p []byte) (int, error)       { return d.in.Read(p) }
func (d duplex) Write(p []byte) (int, error)      { return len(p), nil }
func (d duplex) SetDeadline(time.Time) error      { return nil }
func (d duplex) SetReadDeadline(time.Time) error  { return nil }
func (d duplex) SetWriteDeadline(time.Time) error { return nil }

func FuzzSMTPReply(f *testing.F) {
	for _, s := range []string{greeting, "220-a\r\n220 b\r\n", "250", "abc\r\n", "220-a\r\n221 b\r\n", "421 no\n", ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		d := newSMTPDialogue(duplex{in: bytes.NewReader(said)})
		text, err := d.command("EHLO a", 250)
		if err == nil {
			offersStartTLS(text)
			return
		}
		wellFormed(t, d.result(t.Context(), err))
	})
}
