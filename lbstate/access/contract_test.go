package access_test

import (
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/lbstate/access"
	"github.com/ipvskit/ipvskit/raftstore"
	"github.com/ipvskit/ipvskit/raftstore/raftstoretest"
)

// The state machine keeps the store's contract, with the commands of the corpus.
func TestContract(t *testing.T) {
	data, err := os.ReadFile("testdata/commands-v1.txt")
	if err != nil {
		t.Fatal(err)
	}
	var commands [][]byte
	for line := range strings.Lines(string(data)) {
		_, code, _ := strings.Cut(strings.TrimSpace(line), ": ")
		command, err := hex.DecodeString(code)
		if err != nil {
			t.Fatal(err)
		}
		commands = append(commands, command)
	}
	raftstoretest.Contract(t, access.Bucket, func() raftstore.StateMachine { return access.New(access.Config{}) }, commands)
}
