package fakekernel_test

import (
	"testing"

	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

// What can be loaded is dumped so that it can be loaded again.
func FuzzLoad(f *testing.F) {
	f.Add("-A -t 192.0.2.10:80 -s wlc -p 300 -M 255.255.255.0\n-a -t 192.0.2.10:80 -r 10.1.0.1:8080 -m -w 1 -x 9 -y 4\n")
	f.Add("-A -f 7 -6 -s mh -b mh-port\n-a -f 7 -6 -r [2001:db8::1]:80 -i -w 1 --tun-type gue --tun-port 6080 --tun-csum\n")
	f.Fuzz(func(t *testing.T, dump string) {
		a, b := fakekernel.New(), fakekernel.New()
		if a.Load(dump) != nil {
			return
		}
		if err := b.Load(a.Dump()); err != nil || b.Dump() != a.Dump() {
			t.Errorf("%v\n%s\nbecame\n%s", err, a.Dump(), b.Dump())
		}
	})
}
