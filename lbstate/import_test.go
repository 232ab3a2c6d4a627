package lbstate

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var importers = map[string]func([]byte) (Configuration, []ImportNote){
	"ipvsadm":    ImportIPVSADM,
	"keepalived": ImportKeepalived,
}

// testdata/import has, for each importer, what goes in and what comes out.
func TestImport(t *testing.T) {
	for name, read := range importers {
		data, err := os.ReadFile(filepath.Join("testdata", "import", name+".in"))
		if err != nil {
			t.Fatal(err)
		}
		c, notes := read(data)
		text, err := c.YAML()
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, n := range notes {
			fmt.Fprintln(&b, n)
		}
		golden(t, filepath.Join("testdata", "import", name+".golden"), b.String()+"\n"+string(text))
	}
}

// What ipvsadm saved is what the kernel gets again.
func TestImportedServicesRun(t *testing.T) {
	c, notes := ImportIPVSADM([]byte("-A -t 192.0.2.10:80 -s wlc\n-a -t 192.0.2.10:80 -r 10.1.0.1:8080 -m -w 100\n"))
	if len(notes) > 0 {
		t.Fatal(notes)
	}
	n := newNode(t)
	p, err := n.Plan(t.Context(), c, PlanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.ApplyPlan(t.Context(), c, PlanOptions{}, p.Hash, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	d := Desired(n.service(t, "tcp-192.0.2.10-80"))
	if b := d.Backends[0]; d.Scheduler != "wlc" || b.Port != 8080 || b.Weight != 100 || b.Forwarding != Masq {
		t.Errorf("%+v", d)
	}
}

func TestImportIsBounded(t *testing.T) {
	for name, read := range importers {
		if c, notes := read(make([]byte, maxImportBytes+1)); len(c.Services) > 0 || len(notes) != 1 {
			t.Errorf("%s: %v, %v", name, c, notes)
		}
	}
}

func fuzzImport(f *testing.F, name string) {
	data, err := os.ReadFile(filepath.Join("testdata", "import", name+".in"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	for line := range strings.Lines(string(data)) {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, notes := importers[name](data)
		// What is not said to be refused is not refused, and comes back from YAML.
		if len(notes) > 0 {
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		text, err := c.YAML()
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeConfiguration(text)
		if err != nil {
			t.Fatalf("%v:\n%s", err, text)
		}
		if again, err := back.YAML(); err != nil || string(again) != string(text) {
			t.Fatalf("%v:\n%s\n%s", err, again, text)
		}
	})
}

func FuzzImportIPVSADM(f *testing.F)    { fuzzImport(f, "ipvsadm") }
func FuzzImportKeepalived(f *testing.F) { fuzzImport(f, "keepalived") }
