package reconcile

import (
	"bytes"
	"testing"
)

func FuzzRecord(f *testing.F) {
	r := newRecord()
	k, _ := ParseKey("tcp/192.0.2.10:80")
	r.VIPs[k.Addr], r.Own[k], r.Foreign[MarkKey(IPv6, 7)], r.Daemons[SyncMaster] = true, true, true, true
	f.Add(r.encode())
	f.Add([]byte(`{"version":1,"vips":["2001:db8::1"],"drains":[{"service":"udp/[2001:db8::1]:53","destination":"10.1.0.1:53"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		again, err := decodeRecord(r.encode())
		if err != nil || !again.equal(r) || !bytes.Equal(again.encode(), r.encode()) {
			t.Errorf("%s became %s: %v", r.encode(), again.encode(), err)
		}
	})
}

func FuzzKey(f *testing.F) {
	for _, s := range []string{"tcp/192.0.2.10:80", "udp/[2001:db8::1]:53", "fwmark/7/ipv4", "proto-47/192.0.2.1:0", "sctp/[::ffff:192.0.2.1]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseKey(s)
		if err != nil {
			return
		}
		if again, err := ParseKey(k.String()); err != nil || again != k {
			t.Errorf("%q became %v: %v", s, again, err)
		}
	})
}

func FuzzRule(f *testing.F) {
	f.Add("-A IPVSKIT-POSTROUTING -s 192.0.2.10 -m ipvs --ipvs --vproto tcp --vaddr 192.0.2.10/255.255.255.255 -j MASQUERADE")
	f.Fuzz(func(t *testing.T, s string) {
		if r := ParseRule(s); ParseRule("-A CHAIN "+string(r)) != r {
			t.Errorf("%q is not canonical", r)
		}
	})
}

func FuzzListing(f *testing.F) {
	f.Add([]byte("IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n" +
		"TCP  C000020A:0050 wlc persistent 300 FFFFFF00\n  -> 0A010001:1F90      Masq    100    0          0\nFWM  00000007 rr ops\n"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		var p procParser
		buf := make([]byte, 1024)
		for held := 0; len(b) > 0; {
			n := copy(buf[held:], b)
			if b = b[n:]; n == 0 {
				break
			}
			held = p.feed(buf[:held+n], buf)
		}
		_, _ = p.finish(nil)
	})
}
