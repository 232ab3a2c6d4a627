package reconcile

import "testing"

// What comes from the kernel is decoded without trust in its lengths.
func FuzzMessages(f *testing.F) {
	s := Service{Key: MarkKey(IPv6, 7), Scheduler: "wlc", Flags: Persistent, Prefix: 64}
	f.Add(putNested(genl(nil, 1), attrService, func(b []byte) []byte { return putService(b, s, true) }))
	d := Destination{Addr: s.Addr, Port: 80, Weight: 3}
	f.Add(putNested(genl(nil, 5), attrDest, func(b []byte) []byte { return putDestination(b, d) }))
	f.Add(putNested(genl(nil, 9), attrDaemon, func(b []byte) []byte { return putDaemon(b, SyncDaemon{Role: SyncMaster, Interface: "eth0"}) }))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = decodeServiceMessage(b)
		_, _ = decodeDestinationMessage(b, IPv4)
		_, _ = decodeDaemonMessage(b)
		_, _, _ = decodeAddress(b)
	})
}
