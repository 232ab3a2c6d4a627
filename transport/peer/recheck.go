package peer

import (
	"crypto/tls"
	"net"

	"go.uber.org/zap"
)

// Recheck asks allowed about every TLS connection that is up, and closes those
// for which it returns an error: a handshake judges the other end once, and its
// certificate may be revoked later. allowed is called with no lock held. That
// the other end is not let in again is for ServerTLS and ClientTLS to see to.
func (t *Transport) Recheck(allowed func(tls.ConnectionState) error) {
	type live struct {
		conn, raw net.Conn
		member    uint64
		lane      Lane
	}
	var up []live
	t.mu.RLock()
	for _, m := range t.members {
		for _, in := range m.inbound {
			up = append(up, live{in.conn, in.raw, m.id, in.lane})
		}
		for _, l := range [...]*lane{m.control, m.data} {
			l.mu.Lock()
			if out, ok := l.conn.(*outgoing); ok {
				up = append(up, live{out.Conn, out.raw, m.id, l.name})
			}
			l.mu.Unlock()
		}
	}
	t.mu.RUnlock()
	for _, c := range up {
		secure, ok := c.conn.(*tls.Conn)
		if !ok {
			continue
		}
		if err := allowed(secure.ConnectionState()); err != nil {
			t.cfg.Logger.Warn("connection closed", hexField("member", c.member), zap.Stringer("lane", c.lane), zap.Error(err))
			_ = c.raw.Close()
		}
	}
}
