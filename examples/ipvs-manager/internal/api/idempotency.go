package api

import (
	"fmt"
	"net/http"
	"strings"
)

const maxIdempotencyKey = 128

// idempotencyKey reads the header Idempotency-Key: a write that is repeated
// under its key has no effect, and gets the answer of the first. The key is a
// quoted string, as structured fields have it (RFC 8941, 3.3.3), or the same
// without its quotes.
func idempotencyKey(r *http.Request) (string, *problem) {
	values := r.Header.Values("Idempotency-Key")
	if len(values) == 0 {
		return "", nil
	}
	key := values[0]
	quoted := len(key) >= 2 && key[0] == '"' && key[len(key)-1] == '"'
	if quoted {
		key = key[1 : len(key)-1]
	}
	unprintable := func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' || !quoted && c == ',' }
	if len(values) > 1 || key == "" || len(key) > maxIdempotencyKey || strings.ContainsFunc(key, unprintable) {
		return "", refused(http.StatusBadRequest, fmt.Sprintf(
			`Idempotency-Key is %.150q; allowed: one key of 1 to %d printable ASCII characters, without quotes and backslashes inside`,
			strings.Join(values, ", "), maxIdempotencyKey))
	}
	return key, nil
}
