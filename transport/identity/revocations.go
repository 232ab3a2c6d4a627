package identity

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strings"

	"go.uber.org/zap"
)

// Revocations is a file that names who is no longer let in. It is read anew when
// it changes. Each line is one of
//
//	ROLE/NAME  why     every certificate of that name
//	serial/HEX why     one certificate
//
// Empty lines and those that begin with # are left out. It is safe for
// concurrent use.
type Revocations struct {
	files *watched[map[string]string] // why, by "role/name" or "serial/hex"
}

const maxRevocations = 100_000

// OpenRevocations reads the file. A nil logger is silent.
func OpenRevocations(path string, log *zap.Logger) (*Revocations, error) {
	if log == nil {
		log = zap.NewNop()
	}
	files, err := watch([]string{path}, func() (map[string]string, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		data, err := readAtMost(f, path, maxRevocations*512)
		if err != nil {
			return nil, err
		}
		list, err := parseRevocations(data)
		if err != nil {
			return nil, fmt.Errorf("revocations %s: %w", path, err)
		}
		return list, nil
	}, log.Named("identity"))
	if err != nil {
		return nil, err
	}
	return &Revocations{files}, nil
}

func parseRevocations(data []byte) (map[string]string, error) {
	list := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		what, why, _ := strings.Cut(line, " ")
		kind, value, ok := strings.Cut(what, "/")
		if kind == "serial" {
			value = strings.TrimLeft(strings.ToLower(strings.ReplaceAll(value, ":", "")), "0")
			ok = ok && value != "" && strings.Trim(value, "0123456789abcdef") == ""
		} else {
			ok = ok && ID{Domain: "x", Role: Role(kind), Name: value}.Validate() == nil && Role(kind) != roleCA
		}
		if !ok {
			return nil, fmt.Errorf("line %d is %.80q; expected server/NAME, agent/NAME, operator/NAME or serial/HEX, then a space and the reason", n, line)
		}
		if len(list) >= maxRevocations {
			return nil, fmt.Errorf("more than %d revocations", maxRevocations)
		}
		if why = strings.TrimSpace(why); why == "" {
			why = "it was revoked"
		}
		list[kind+"/"+value] = why
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return list, nil
}

// Revoked is for Config.Revoked. A nil Revocations revokes nothing.
func (r *Revocations) Revoked(id ID, serial string) string {
	if r == nil {
		return ""
	}
	list := r.files.get()
	if why := list[string(id.Role)+"/"+id.Name]; why != "" {
		return why
	}
	return list["serial/"+serial]
}
