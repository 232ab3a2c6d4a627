package lbstate

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// dump is all that a state holds, as text.
func dump(tx *bbolt.Tx) (string, error) {
	v := openView(tx)
	if v.root == nil {
		return "nothing\n", nil
	}
	var b strings.Builder
	n, err := v.numbers()
	if err != nil {
		return "", err
	}
	fmt.Fprintf(&b, "counters %+v\n", n)
	show := func(name string, v any) error {
		data, err := json.Marshal(v)
		fmt.Fprintf(&b, "%s %s\n", name, data)
		return err
	}
	for _, kind := range kinds {
		if err := v.each(kind, nil, func(r record) error {
			if r.Service != nil {
				health, _, err := v.health(r.Service.Name)
				if err != nil {
					return err
				}
				defer func() {
					for _, backend := range r.Service.Backends {
						if h, ok := health[backend.AddrPort()]; ok {
							fmt.Fprintf(&b, "  %s %s since %d held %v %q\n", backend.Key(), h.State, h.Since, h.Held, h.Message)
						}
					}
				}()
			}
			return show(fmt.Sprintf("%s frame %d", r.Ref(), r.frame), r.value())
		}); err != nil {
			return "", err
		}
	}
	for _, bucket := range [][]byte{listenersBucket, vipsBucket, targetsBucket, usesBucket, versionsBucket, keyOrderBucket} {
		if err := v.prefixed(bucket, nil, func(key, body []byte) (bool, error) {
			text := strings.ReplaceAll(string(key), "\x00", " ")
			switch string(bucket) {
			case "versions":
				text = fmt.Sprintf("%s@%d of %d bytes", key[:len(key)-9], binary.BigEndian.Uint64(key[len(key)-8:]), len(body))
				body = nil
			case "keyorder":
				text = fmt.Sprint(number(key))
			}
			fmt.Fprintln(&b, strings.TrimSpace(fmt.Sprintf("%s %s %s", bucket, text, body)))
			return true, nil
		}); err != nil {
			return "", err
		}
	}
	if err := v.prefixed(changesBucket, nil, func(key, body []byte) (bool, error) {
		var names lbstatepb.Names
		fmt.Fprintf(&b, "changes %d ", number(key))
		err := unmarshal(changesBucket, key, body, &names)
		fmt.Fprintln(&b, strings.Join(names.GetNames(), " "))
		return true, err
	}); err != nil {
		return "", err
	}
	err = v.entries(0, n.revision, func(rev uint64, e *lbstatepb.Change) (bool, error) {
		fmt.Fprintf(&b, "history %d at %d by %q why %q:", rev, e.GetAt(), e.GetAuthor(), e.GetReason())
		for _, o := range e.GetObjects() {
			fmt.Fprintf(&b, " %s/%s before %d %s", o.GetKind(), o.GetName(), o.GetBefore(), o.GetOutcome())
		}
		fmt.Fprintln(&b)
		return true, nil
	})
	return b.String(), err
}
