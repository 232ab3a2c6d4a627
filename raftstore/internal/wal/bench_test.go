package wal

import (
	"fmt"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
)

// BenchmarkAppend appends batches of 256-byte entries durably: to this log, and
// to a bbolt file, as the log was before (docs/adr/0002-own-log.md).
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{1, 16, 128, 512} {
		batch := make([]*raftpb.Entry, size)
		next := func(index uint64) {
			for i := range batch {
				batch[i] = entry(index+uint64(i), 1, string(make([]byte, 256)))
			}
		}
		report := func(b *testing.B) {
			b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "entries/s")
		}
		b.Run(fmt.Sprintf("segments/%d", size), func(b *testing.B) {
			l, _, err := Open(disk.OS{}, b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			index := uint64(1)
			for b.Loop() {
				next(index)
				if err := l.Append(Batch{Hard: &HardState{1, 1, index}, Entries: batch}); err != nil {
					b.Fatal(err)
				}
				index += uint64(size)
				if index%10_000 < uint64(size) {
					if err := l.Cut(index - 1); err != nil {
						b.Fatal(err)
					}
				}
			}
			report(b)
		})
		b.Run(fmt.Sprintf("bbolt/%d", size), func(b *testing.B) {
			db, err := bbolt.Open(filepath.Join(b.TempDir(), "log.db"), 0o600, &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close()
			index, first := uint64(1), uint64(1)
			for b.Loop() {
				next(index)
				err := db.Update(func(tx *bbolt.Tx) error {
					bucket, err := tx.CreateBucketIfNotExists([]byte("entries"))
					if err != nil {
						return err
					}
					bucket.FillPercent = 0.9
					for _, e := range batch {
						v, err := proto.Marshal(e)
						if err != nil {
							return err
						}
						if err := bucket.Put(fmt.Appendf(nil, "%016x", e.GetIndex()), v); err != nil {
							return err
						}
					}
					for ; index-first > 10_000; first++ {
						if err := bucket.Delete(fmt.Appendf(nil, "%016x", first)); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
				index += uint64(size)
			}
			report(b)
		})
	}
}
