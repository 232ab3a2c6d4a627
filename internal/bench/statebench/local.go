package statebench

import (
	"context"
	"path/filepath"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/lbstate"
)

// maxPacked is how many commands one transaction takes, as a replicated log
// packs what waits into one entry.
const maxPacked = 512

// replicator applies commands in turn, those that wait together in one
// transaction, to a database that does not sync.
type replicator struct {
	state    *lbstate.State
	db       *bbolt.DB
	proposed chan proposal
	done     chan struct{} // closed when the loop has ended
}

type proposal struct {
	cmd    []byte
	answer chan<- answer
}

type answer struct {
	result any
	index  uint64
	err    error
}

func open(dir string) (*lbstate.Store, *replicator, error) {
	db, err := bbolt.Open(filepath.Join(dir, "state.db"), 0o600, &bbolt.Options{
		NoSync: true, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, InitialMmapSize: 256 << 20,
	})
	if err != nil {
		return nil, nil, err
	}
	r := &replicator{
		state: lbstate.New(lbstate.Config{}), db: db,
		proposed: make(chan proposal, maxPacked), done: make(chan struct{}),
	}
	go r.run()
	return lbstate.NewStore(r.state, r), r, nil
}

func (r *replicator) run() {
	defer close(r.done)
	var index uint64
	for p := range r.proposed {
		batch := []proposal{p}
		for more := true; more && len(batch) < maxPacked; {
			select {
			case p, more = <-r.proposed:
				if more {
					batch = append(batch, p)
				}
			default:
				more = false
			}
		}
		var cmds [][]byte
		for _, p := range batch {
			cmds = append(cmds, p.cmd)
		}
		index++
		var results []any
		err := r.db.Update(func(tx *bbolt.Tx) (err error) {
			results, err = r.state.Apply(tx, 1, index, cmds)
			return err
		})
		r.state.Committed(index)
		for i, p := range batch {
			a := answer{index: index, err: err}
			if err == nil {
				a.result = results[i]
			}
			p.answer <- a
		}
	}
}

func (r *replicator) Accepts(uint64) error { return nil }

func (r *replicator) Propose(_ context.Context, cmd []byte) (any, uint64, error) {
	answered := make(chan answer, 1)
	r.proposed <- proposal{cmd, answered}
	a := <-answered
	return a.result, a.index, a.err
}

func (r *replicator) Read(_ context.Context, fn func(*bbolt.Tx) error) error { return r.db.View(fn) }

func (r *replicator) ReadStale(fn func(*bbolt.Tx) error) error { return r.db.View(fn) }

// close ends the loop. Nothing may be proposed any more.
func (r *replicator) close() error {
	close(r.proposed)
	<-r.done
	return r.db.Close()
}

// size is what the keys and values take, in bytes.
func (r *replicator) size() (used int64, err error) {
	err = r.db.View(func(tx *bbolt.Tx) error {
		s := tx.Bucket([]byte(lbstate.Bucket)).Stats()
		used = int64(s.LeafInuse + s.BranchInuse)
		return nil
	})
	return used, err
}
