package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"go.uber.org/zap"
)

// Config says how a Transport listens, dials and bounds itself. The zero value
// listens on 127.0.0.1:8110 without TLS.
type Config struct {
	// Listener is where other members arrive; the Transport closes it. Nil means
	// that New listens on ListenAddr.
	Listener net.Listener

	// ListenAddr is a TCP address, host:port; port 0 takes a free one (see
	// Transport.Addr). Empty means 127.0.0.1:8110. Unused if Listener is given.
	ListenAddr string

	// Advertise is the address under which other members reach this one. It is
	// told in the handshake, for members that do not know this one yet. Empty
	// means the listener's own address.
	Advertise string

	// Dial opens a connection to a member's address. Nil means TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)

	// ServerTLS and ClientTLS, where given, wrap every connection that is
	// accepted or dialed. A ClientTLS without a ServerName gets the dialed host
	// as its name. Both are needed or neither.
	ServerTLS *tls.Config
	ClientTLS *tls.Config

	// QueueMessages and QueueBytes bound what waits for one lane of one member,
	// in messages and in bytes; as much again may be on its way into the
	// connection. Zero means 4096 messages and 64 MiB.
	QueueMessages int
	QueueBytes    int

	// MaxMessage bounds one message on the wire, in bytes, sent or received.
	// Zero means 64 MiB. It must be the same for all members of a cluster.
	MaxMessage int

	// SnapshotRate bounds the bytes a second that all outgoing snapshots take
	// together. Zero means no bound.
	SnapshotRate int64

	// DialTimeout bounds opening a connection, TLS included; HandshakeTimeout
	// the exchange after it. Zero means 2 s for each.
	DialTimeout      time.Duration
	HandshakeTimeout time.Duration

	// WriteTimeout is how long one write may take before the connection is given
	// up. Zero means 5 s.
	WriteTimeout time.Duration

	// PingInterval is the time between two pings on a lane, and IdleTimeout the
	// silence after which the other end counts as gone. Zero means 1 s and 5 s.
	PingInterval time.Duration
	IdleTimeout  time.Duration

	// SnapshotTimeout is how long a snapshot may make no progress. Zero means
	// 30 s.
	SnapshotTimeout time.Duration

	// BackoffMin and BackoffMax bound the pause between two attempts to connect;
	// it doubles, with jitter. A member that calls is called back at once. Zero
	// means 10 ms and 2 s.
	BackoffMin time.Duration
	BackoffMax time.Duration

	// Logger is named "peer"; nil is silent.
	Logger *zap.Logger

	// Metrics may be nil.
	Metrics Metrics
}

func (c Config) withDefaults() Config {
	if c.ListenAddr == "" {
		c.ListenAddr = "127.0.0.1:8110"
	}
	if c.Dial == nil {
		var d net.Dialer
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	orInt := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	orInt(&c.QueueMessages, 4096)
	orInt(&c.QueueBytes, 64<<20)
	orInt(&c.MaxMessage, 64<<20)
	orTime := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	orTime(&c.DialTimeout, 2*time.Second)
	orTime(&c.HandshakeTimeout, 2*time.Second)
	orTime(&c.WriteTimeout, 5*time.Second)
	orTime(&c.PingInterval, time.Second)
	orTime(&c.IdleTimeout, 5*time.Second)
	orTime(&c.SnapshotTimeout, 30*time.Second)
	orTime(&c.BackoffMin, 10*time.Millisecond)
	orTime(&c.BackoffMax, 2*time.Second)
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	c.Logger = c.Logger.Named("peer")
	if c.Metrics == nil {
		c.Metrics = noMetrics{}
	}
	return c
}

func (c Config) validate() error {
	if (c.ServerTLS == nil) != (c.ClientTLS == nil) {
		return errors.New("peer: ServerTLS and ClientTLS are needed both or neither: a member accepts and dials")
	}
	for name, v := range map[string]int64{
		"QueueMessages": int64(c.QueueMessages), "QueueBytes": int64(c.QueueBytes),
		"DialTimeout": int64(c.DialTimeout), "HandshakeTimeout": int64(c.HandshakeTimeout),
		"WriteTimeout": int64(c.WriteTimeout), "PingInterval": int64(c.PingInterval),
		"IdleTimeout": int64(c.IdleTimeout), "SnapshotTimeout": int64(c.SnapshotTimeout),
		"BackoffMin": int64(c.BackoffMin), "BackoffMax": int64(c.BackoffMax),
	} {
		if v < 0 {
			return fmt.Errorf("peer: %s is negative", name)
		}
	}
	if c.SnapshotRate < 0 {
		return errors.New("peer: SnapshotRate is negative; zero means no bound")
	}
	if c.MaxMessage < 1<<10 || c.MaxMessage > 1<<30 {
		return fmt.Errorf("peer: MaxMessage is %d, it must be between 1 KiB and 1 GiB", c.MaxMessage)
	}
	if c.IdleTimeout < 2*c.PingInterval {
		return fmt.Errorf("peer: IdleTimeout %v must be at least twice PingInterval %v: one late ping would end a connection", c.IdleTimeout, c.PingInterval)
	}
	if c.BackoffMax < c.BackoffMin {
		return fmt.Errorf("peer: BackoffMax %v is less than BackoffMin %v", c.BackoffMax, c.BackoffMin)
	}
	if len(c.Advertise) > maxAddress {
		return fmt.Errorf("peer: Advertise has %d bytes, at most %d are allowed", len(c.Advertise), maxAddress)
	}
	return nil
}
