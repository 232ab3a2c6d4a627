package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// GRPCConfig says how a gRPC probe asks.
type GRPCConfig struct {
	// Service is what the health of is asked for; empty: the server as a whole.
	Service string
	// Address and Port are asked instead of the target's, where they are set.
	Address netip.Addr
	Port    uint16
	// Host is the authority that is asked for, and with TLS the name that the
	// certificate must have. By default both are the address that is dialed.
	Host string
	// TLS is nil for a server that speaks in the clear.
	TLS *TLSConfig
	Via Via
}

// GRPC is a probe that asks the health service of a gRPC server
// (grpc.health.v1.Health/Check) over a connection of its own. It is made by
// NewGRPC.
type GRPC struct {
	cfg     GRPCConfig
	message []byte
}

// NewGRPC makes a gRPC probe.
func NewGRPC(cfg GRPCConfig) (*GRPC, error) {
	if !visible(cfg.Host) {
		return nil, fmt.Errorf("grpc probe: host %q has spaces or control characters", cfg.Host)
	}
	if err := cfg.Via.validate(); err != nil {
		return nil, fmt.Errorf("grpc probe: %w", err)
	}
	if cfg.TLS != nil {
		t := *cfg.TLS
		t.protocols = []string{alpnH2}
		cfg.TLS = &t
	}
	p := &GRPC{cfg: cfg}
	var check []byte // a HealthCheckRequest
	if cfg.Service != "" {
		check = protowire.AppendTag(check, 1, protowire.BytesType)
		check = protowire.AppendString(check, cfg.Service)
	}
	p.message = append(p.message, 0) // not compressed
	p.message = binary.BigEndian.AppendUint32(p.message, uint32(len(check)))
	p.message = append(p.message, check...)
	if len(p.message) > 1<<12 {
		return nil, fmt.Errorf("grpc probe: the service's name has %d bytes, want at most 4000", len(cfg.Service))
	}
	return p, nil
}

// grpcLimit is how many bytes of an answer's messages are read at most. The
// message that is expected has two.
const grpcLimit = 4096

// Probe asks target for its health.
func (p *GRPC) Probe(ctx context.Context, target netip.AddrPort) healthcheck.Result {
	target = at(target, p.cfg.Address, p.cfg.Port)
	conn, err := p.cfg.Via.connect(ctx, target)
	if err != nil {
		return failed(ctx, phaseConnect, p.expected(), err)
	}
	defer conn.Close()
	defer bind(ctx, conn)()
	host, scheme := p.cfg.Host, "http"
	if host == "" {
		host = hostPort(target)
	}
	var warning string
	if p.cfg.TLS != nil {
		scheme = "https"
		secure, err := p.cfg.TLS.handshake(ctx, conn, hostname(host))
		if err != nil {
			return failed(ctx, phaseTLS, p.expected(), err)
		}
		conn, warning = secure, p.cfg.TLS.warning(secure)
	}
	fields := []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: scheme},
		{Name: ":authority", Value: host},
		{Name: ":path", Value: "/grpc.health.v1.Health/Check"},
		{Name: "content-type", Value: "application/grpc"},
		{Name: "user-agent", Value: userAgent},
		{Name: "te", Value: "trailers"},
	}
	if deadline, ok := ctx.Deadline(); ok {
		ms := max(1, time.Until(deadline).Milliseconds())
		fields = append(fields, hpack.HeaderField{Name: "grpc-timeout", Value: strconv.FormatInt(min(ms, 99_999_999), 10) + "m"})
	}
	request, err := h2Request(fields, p.message, grpcLimit)
	if err != nil {
		return failed(ctx, phaseRequest, p.expected(), err)
	}
	a, err := h2Exchange(conn, request, grpcLimit, func(h2Answer) bool { return true })
	if err != nil {
		phase := phaseAnswer
		if errors.As(err, new(requestError)) {
			phase = phaseRequest
		}
		return failed(ctx, phase, p.expected(), err)
	}
	res := p.judge(a)
	if res.OK() {
		res.Warning = warning
	}
	return res
}

func (p *GRPC) expected() string {
	if p.cfg.Service == "" {
		return "the server to be SERVING"
	}
	return "service " + strconv.Quote(quote(p.cfg.Service)) + " to be SERVING"
}

// judge says what to make of an answer.
func (p *GRPC) judge(a h2Answer) healthcheck.Result {
	bad := func(class healthcheck.Class, found, advice string) healthcheck.Result {
		return healthcheck.Result{Class: class, Phase: phaseAnswer, Expected: p.expected(), Found: found, Advice: advice}
	}
	if code, _ := a.status(); code != 200 {
		return bad(healthcheck.BadStatus, fmt.Sprintf("HTTP status %d", code), "check that a gRPC server, not a web server, listens there")
	}
	if t := a.value("content-type"); t != "application/grpc" && !strings.HasPrefix(t, "application/grpc+") && !strings.HasPrefix(t, "application/grpc;") {
		return bad(healthcheck.Protocol, "content of type "+strconv.Quote(quote(t)), "check that a gRPC server, not a web server, listens there")
	}
	if a.cut {
		return bad(healthcheck.Protocol, fmt.Sprintf("more than %d bytes of messages", grpcLimit), "")
	}
	status, message := a.trailing("grpc-status"), a.trailing("grpc-message")
	if status == "" { // an answer of trailers alone has them in its header
		status, message = a.value("grpc-status"), a.value("grpc-message")
	}
	if text, err := url.PathUnescape(message); err == nil {
		message = text
	}
	switch status {
	case "0":
	case "":
		return bad(healthcheck.Protocol, "an answer without a grpc-status", "")
	case "5":
		return bad(healthcheck.BadStatus, "the server does not know this service (NOT_FOUND)", "check the service's name, or leave it out")
	case "12":
		return bad(healthcheck.BadStatus, "the server has no health service (UNIMPLEMENTED)", "register grpc.health.v1.Health with the server")
	default:
		return bad(healthcheck.BadStatus, quote(strings.TrimSpace("grpc-status "+status+" "+message)), "")
	}
	serving, err := healthStatus(a.body)
	switch {
	case err != nil:
		return bad(healthcheck.Protocol, err.Error(), "")
	case serving == 1:
		return healthcheck.Result{}
	default:
		return bad(healthcheck.BadStatus, servingName(serving), "")
	}
}

// healthStatus reads the one message of an answer: a HealthCheckResponse.
func healthStatus(body []byte) (uint64, error) {
	if len(body) < 5 {
		return 0, fmt.Errorf("%d bytes, not a message", len(body))
	}
	if body[0] != 0 {
		return 0, errors.New("a compressed message, though that was not asked for")
	}
	if n := uint64(binary.BigEndian.Uint32(body[1:])); n != uint64(len(body)-5) {
		return 0, fmt.Errorf("a message of %d bytes that says it has %d", len(body)-5, n)
	}
	var status uint64
	for body = body[5:]; len(body) > 0; {
		number, kind, n := protowire.ConsumeField(body)
		if n < 0 {
			return 0, fmt.Errorf("a message that is not protobuf: %w", protowire.ParseError(n))
		}
		if number == 1 && kind == protowire.VarintType {
			_, _, tag := protowire.ConsumeTag(body)
			status, _ = protowire.ConsumeVarint(body[tag:])
		}
		body = body[n:]
	}
	return status, nil
}

func servingName(status uint64) string {
	names := []string{"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"}
	if status < uint64(len(names)) {
		return names[status]
	}
	return fmt.Sprintf("status %d", status)
}
