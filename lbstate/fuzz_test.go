package lbstate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// FuzzService reads any text as a service. One that is valid must come back the
// same from its JSON, from its encoding, and from its defaults. INV-41.
func FuzzService(f *testing.F) {
	f.Add([]byte(checkedWeb))
	for _, text := range checkSeeds {
		f.Add([]byte(`{name: web, vip: 192.0.2.10, port: 80, health_check: ` + text + `, backends: [{address: 10.1.0.1, health_check: ` + text + `}]}`))
	}
	for _, c := range corpus() {
		for _, op := range c.command.GetTransaction().GetOperations() {
			if p := op.GetPutService(); p != nil {
				s, err := serviceFrom(p)
				if err != nil {
					f.Fatal(err)
				}
				data, err := json.Marshal(s)
				if err != nil {
					f.Fatal(err)
				}
				f.Add(data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := DecodeService(data)
		if err != nil {
			var syntax *SyntaxError
			var invalid *ValidationError
			if !errors.As(err, &syntax) && !errors.As(err, &invalid) || err.Error() == "" {
				t.Fatalf("error %v", err)
			}
			return
		}
		s = s.WithDefaults()
		if s.Validate() != nil {
			return
		}
		s.Warnings()
		body, err := encode(s.proto())
		if err != nil {
			t.Fatalf("a valid service cannot be encoded: %v", err)
		}
		rec, err := decodeRecord(KindService, body)
		if err != nil {
			t.Fatal(err)
		}
		again, err := rec.encode()
		if err != nil || !bytes.Equal(again, body) {
			t.Fatalf("encoded again it differs, %v", err)
		}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeService(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		third, err := encode(back.WithDefaults().proto())
		if err != nil || !bytes.Equal(third, body) {
			t.Fatalf("by JSON it differs, %v: %s", err, text)
		}
		if _, err := DesiredFromProto(Desired(Effective(s, nil, nil, 1)).Proto()); err != nil {
			t.Fatalf("directors would not read it: %v", err)
		}
	})
}

// FuzzObjects reads any text as each of the other objects.
func FuzzObjects(f *testing.F) {
	f.Add([]byte(`{name: probe, check: {type: tcp}}`))
	for _, text := range checkSeeds {
		f.Add([]byte(`{name: probe, check: ` + text + `}`))
	}
	f.Add([]byte(`{name: edge, sysctls: {net.ipv4.vs.conntrack: "1"}, timeouts: {tcp: 1s}, guard: {}}`))
	f.Add([]byte(`{history_age: 24h}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, kind := range kinds {
			o, err := decodeObject(kind, data)
			if err != nil {
				continue
			}
			o = o.withDefaults()
			if o.validate() != nil {
				continue
			}
			o.warnings()
			body, err := record{Object: o}.encode()
			if err != nil {
				t.Fatalf("a valid %s cannot be encoded: %v", kind, err)
			}
			rec, err := decodeRecord(kind, body)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := rec.encode(); err != nil || !bytes.Equal(again, body) {
				t.Fatalf("encoded again it differs, %v", err)
			}
		}
		if b, err := DecodeBackend(data); err == nil {
			b.withDefaults(Service{Port: 80}).validate(&faults{}, "backend", Service{})
		}
	})
}

// FuzzCommand applies any bytes after a log that is known: they are applied, or
// refused, or stop the machine, but never half applied.
func FuzzCommand(f *testing.F) {
	for _, c := range corpus2() {
		f.Add(must(encode(c.command)))
	}
	var log [][]byte
	for _, c := range corpus() {
		data, err := encode(c.command)
		if err != nil {
			f.Fatal(err)
		}
		log = append(log, data)
		f.Add(data)
	}
	m := openMachine(f, filepath.Join(f.TempDir(), "db"))
	f.Cleanup(func() { m.db.Close() })
	for _, data := range log[:8] {
		m.apply(f, 1, data)
	}
	undo := errors.New("undo")
	f.Fuzz(func(t *testing.T, data []byte) {
		err := m.db.Update(func(tx *bbolt.Tx) error {
			before, err := DigestState(tx)
			if err != nil {
				return err
			}
			results, err := m.Apply(tx, 1, 1, [][]byte{data})
			if err != nil {
				return undo
			}
			after, err := DigestState(tx)
			if err != nil {
				return err
			}
			if refusal, ok := results[0].(error); ok && before != after {
				return fmt.Errorf("refused (%w), but not without a trace", refusal)
			}
			return errors.Join(undo, check(tx))
		})
		if err.Error() != undo.Error() {
			t.Fatal(err)
		}
	})
}

// FuzzDesired reads any bytes as what a director is sent or has in its journal.
func FuzzDesired(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := decodeDesired(data)
		if err != nil {
			return
		}
		d, err := DesiredFromProto(p)
		if err != nil {
			return
		}
		if _, err := DesiredFromProto(d.Proto()); err != nil {
			t.Fatalf("read once, but not twice: %v", err)
		}
	})
}

// FuzzValue puts any bytes, with a checksum that matches, where a value of a
// snapshot would be: whatever reads it may refuse it, but not fall over.
func FuzzValue(f *testing.F) {
	m := openMachine(f, filepath.Join(f.TempDir(), "db"))
	f.Cleanup(func() { m.db.Close() })
	for _, c := range corpus()[:9] {
		m.apply(f, 1, must(encode(c.command)))
	}
	type place struct{ bucket, key []byte }
	var places []place
	if err := m.db.View(func(tx *bbolt.Tx) error {
		for i, bucket := range buckets {
			if err := openView(tx).prefixed(bucket, nil, func(key, body []byte) (bool, error) {
				f.Add(len(places), []byte{}, body)
				f.Add(len(places), []byte("x"), body)
				places = append(places, place{buckets[i], bytes.Clone(key)})
				return true, nil
			}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		f.Fatal(err)
	}
	cmds := [][]byte{}
	for _, c := range corpus()[1:] {
		cmds = append(cmds, must(encode(c.command)))
	}
	undo := errors.New("undo")
	f.Fuzz(func(t *testing.T, i int, suffix, body []byte) {
		p := places[uint(i)%uint(len(places))]
		err := m.db.Update(func(tx *bbolt.Tx) error {
			tab := &table{view: openView(tx)}
			if err := tab.put(p.bucket, append(bytes.Clone(p.key), suffix...), body); err != nil {
				return undo // too long a key
			}
			r := &reader{view: tab.view, cache: &cache{}}
			var err error
			if r.counters, err = r.numbers(); err != nil {
				return undo
			}
			w := &Watcher{}
			_, _ = r.services()
			_, _ = w.full(r, nil, false)
			_, _, _ = r.namesChangedSince(1)
			_, _ = r.settings()
			_, _ = r.touched(1, r.revision)
			_ = r.newest(0, func(uint64, *lbstatepb.Change) bool { return true })
			refs, _ := r.ever()
			for _, ref := range refs {
				_, _ = r.recordAt(ref, 3)
			}
			for _, cmd := range cmds {
				if _, err := m.Apply(tx, 1, 1, [][]byte{cmd}); err != nil {
					return undo // the node stops
				}
			}
			return undo
		})
		if !errors.Is(err, undo) {
			t.Fatal(err)
		}
	})
}

// FuzzConfiguration reads any text as a set of objects. A valid one comes back
// the same from its YAML.
func FuzzConfiguration(f *testing.F) {
	f.Add([]byte(site))
	f.Add([]byte(`{settings: {history_age: 1h}, profiles: [{name: a}], services: [{name: a, fwmark: 1, family: ipv6}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := DecodeConfiguration(data)
		if err != nil || c.Validate() != nil {
			return
		}
		text, err := c.YAML()
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeConfiguration(text)
		if err != nil {
			t.Fatalf("%v:\n%s", err, text)
		}
		if again, err := back.YAML(); err != nil || !bytes.Equal(again, text) {
			t.Fatalf("%v:\n%s\n%s", err, again, text)
		}
	})
}

// FuzzPatch merges any text into a service.
func FuzzPatch(f *testing.F) {
	f.Add([]byte(`{notes: x, health_check: null, backends: [{address: 10.1.0.1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var fields map[string]any
		if decode(data, maxObjectBytes, func(o *object) { fields, o.m = o.m, nil }) != nil {
			return
		}
		s := web(nil).WithDefaults()
		once, err := merged(KindService, Object{Service: &s}, fields)
		if err != nil {
			return
		}
		again, err := merged(KindService, Object{Service: &s}, fields)
		if err != nil || !bytes.Equal(must(json.Marshal(once.value())), must(json.Marshal(again.value()))) {
			t.Fatalf("merged again it differs, %v", err)
		}
	})
}
