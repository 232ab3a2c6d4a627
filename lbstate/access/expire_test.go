package access

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
)

// What is over is dropped however long its name: a command that were too large
// would be so each time.
func TestExpireOfTheLongestNames(t *testing.T) {
	n, ctx := newNode(t), t.Context()
	for i := range maxExpired {
		r := Revocation{Kind: holderOperator, Name: fmt.Sprintf("%04d", i) + strings.Repeat("x", maxHolder-4), Reason: "lost", Until: began.Add(time.Minute)}
		if _, err := n.Revoke(ctx, r, WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	n.clock = began.Add(time.Hour)
	o := WriteOptions{Author: strings.Repeat("a", maxAuthor), Reason: strings.Repeat("r", maxReason)}
	for dropped := 0; dropped < maxExpired; {
		named, err := n.Expire(ctx, o)
		if err != nil || named == 0 {
			t.Fatalf("%d of %d dropped; then %d, %v", dropped, maxExpired, named, err)
		}
		dropped += named
	}
	if left, err := n.Revocations(ctx, lbstate.ReadOptions{}); err != nil || len(left) != 0 {
		t.Errorf("%d are left, %v", len(left), err)
	}
}
