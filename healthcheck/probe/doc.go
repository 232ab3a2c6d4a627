// Package probe has the ways in which a healthcheck.Engine can ask a target.
//
//	probe     asks                                    made by
//	TCP       a connection, half open by default;     NewTCP
//	          TLS, send and expect if wanted
//	HTTP      a request, by HTTP/1.1 or HTTP/2,       NewHTTP
//	          in the clear or by TLS
//	GRPC      grpc.health.v1.Health/Check             NewGRPC
//	UDP       a datagram, and its answer if wanted    NewUDP
//	DNS       a name server, for a name               NewDNS
//	ICMP      an echo request (Linux)                 NewICMP
//	SMTP      a greeting; STARTTLS if wanted          NewSMTP
//	Exec      a program, off unless allowed           NewExec
//	Combined  other probes at once                    All, Any
//
// Each is made once from its config, is immutable from then on, and serves any
// number of targets concurrently. A probe asks over a connection of its own,
// closes it before it returns, and leaves no goroutine and no process behind.
//
// A result's class, phase and texts say what was expected, what was found, and
// what to do. What a target sends is read within bounds, and quoted in part,
// fit for a log. An error of this host (no files, no ports, a rule of its own
// firewall, a missing privilege) is of class Local: it blames no target.
//
// Half open means that the kernel of the target answers, and the program that
// listens does not see the probe. It is Linux's: elsewhere the connection is
// made in full.
package probe
