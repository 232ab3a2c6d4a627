package access_test

import (
	"context"
	"fmt"
	"os"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/access"
)

func Example() {
	dir, err := os.MkdirTemp("", "access")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	state := access.New(access.Config{})
	local, err := lbstate.NewLocal(dir, state) // or a raftstore.Machine
	if err != nil {
		panic(err)
	}
	defer local.Close()
	store, ctx := access.NewStore(state, local), context.Background()
	by := access.WriteOptions{Author: "ann", Reason: "new pipeline"}

	// A program, with a token that reads.
	if _, err := store.PutUser(ctx, access.User{Name: "deploy", Role: access.Operator}, by); err != nil {
		panic(err)
	}
	secret, _, err := store.CreateToken(ctx, access.Token{User: "deploy", Role: access.Viewer}, by)
	if err != nil {
		panic(err)
	}
	who, err := store.Authenticate(ctx, secret, nil)
	fmt.Println(who.User, who.Role, who.Role.May(access.Operator), err)

	// A host that is no longer let in; who has let it in looks again.
	changed := state.Changed(access.KindRevocation)
	res, err := store.Revoke(ctx, access.Revocation{Kind: "agent", Name: "lb1", Reason: "sold"}, by)
	<-changed
	fmt.Println(res.Outcome, res.Revision, err)
	fmt.Println(state.Revoked("agent", "lb1", "6bd4"))

	// Output:
	// deploy viewer false <nil>
	// created 3 <nil>
	// sold
}
