package access

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// PHC is a password hash of argon2id, as the PHC string format writes it:
//
//	$argon2id$v=19$m=65536,t=3,p=4$SALT$HASH
//
// with salt and hash in base64 without padding.
type PHC struct {
	MemoryKiB   uint32
	Iterations  uint32
	Parallelism uint8
	Salt        []byte
	Hash        []byte
}

const phcAllowed = "argon2id in PHC form with m 7168 to 1048576, t 1 to 64, p 1 to 64, a salt of 8 to 64 bytes and a hash of 16 to 64"

// ParsePHC reads a password hash, strictly. The bounds keep a login from taking
// more memory or time than a server can spare (1 GiB), and a hash from being
// cheap (OWASP's lowest setting has 7 MiB). The error does not tell what was
// found.
func ParsePHC(s string) (PHC, error) {
	var p PHC
	parts := strings.Split(s, "$")
	if len(s) > 512 || len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v=19" {
		return p, errors.New("is not of the form $argon2id$v=19$m=65536,t=3,p=4$SALT$HASH: hash the password, do not send it")
	}
	costs := strings.Split(parts[3], ",")
	if len(costs) != 3 {
		return p, errors.New("has not the three costs m, t and p")
	}
	var n [3]uint32
	for i, bound := range []struct {
		name        string
		least, most uint64
	}{{"m", 7168, 1 << 20}, {"t", 1, 64}, {"p", 1, 64}} {
		text, ok := strings.CutPrefix(costs[i], bound.name+"=")
		v, err := strconv.ParseUint(text, 10, 32)
		if !ok || err != nil || v < bound.least || v > bound.most || strconv.FormatUint(v, 10) != text {
			return p, fmt.Errorf("has not %s from %d to %d", bound.name, bound.least, bound.most)
		}
		n[i] = uint32(v)
	}
	p.MemoryKiB, p.Iterations, p.Parallelism = n[0], n[1], uint8(n[2])
	strict := base64.RawStdEncoding.Strict()
	var err error
	if p.Salt, err = strict.DecodeString(parts[4]); err != nil || len(p.Salt) < 8 || len(p.Salt) > 64 || strings.ContainsAny(s, "\r\n") {
		return p, errors.New("has not a salt of 8 to 64 bytes in base64 without padding")
	}
	if p.Hash, err = strict.DecodeString(parts[5]); err != nil || len(p.Hash) < 16 || len(p.Hash) > 64 {
		return p, errors.New("has not a hash of 16 to 64 bytes in base64 without padding")
	}
	return p, nil
}

// String is the inverse of ParsePHC.
func (p PHC) String() string {
	enc := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", p.MemoryKiB, p.Iterations, p.Parallelism, enc.EncodeToString(p.Salt), enc.EncodeToString(p.Hash))
}
