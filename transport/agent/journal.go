package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// A journal keeps the accepted state of an agent in a directory: the base, a
// whole state written anew and renamed into place, and the deltas since,
// appended. What accept returned for is durable (INV-11).
//
// base:   8 bytes of magic and version, 4 of CRC-32C over the rest, JournalBase
// deltas: records of 4 bytes length, 4 of CRC-32C over the payload, JournalEntry
//
// A record cut short at the end of the deltas is an append that was never
// acknowledged: it is cut off. Anything else that does not check is damage:
// the state is not used, the files are moved aside, and the agent starts empty.
// Deltas that a newer base already holds are skipped, so a crash between
// writing the base and clearing the deltas harms nothing.
type journal struct {
	dir  string
	lock *os.File

	mu        sync.Mutex // guards the fields below; one writer, Status reads
	deltas    *os.File
	deltaSize int64
	baseSize  int64
	status    JournalStatus
}

const (
	journalMagic    = "IPVSKAJ\x01"
	maxRecord       = 256 << 20
	compactionFloor = 256 << 10 // bytes of deltas below which nothing is compacted
)

func openJournal(dir string) (*journal, *state, uint64, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, 0, fmt.Errorf("agent's journal: %w", err)
	}
	lock, err := lockDir(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, nil, 0, fmt.Errorf("agent's journal: %w", err)
	}
	j := &journal{dir: dir, lock: lock}
	st, applied, err := j.load()
	if err != nil {
		j.close()
		return nil, nil, 0, fmt.Errorf("agent's journal: %w", err)
	}
	return j, st, applied, nil
}

func (j *journal) path(name string) string { return filepath.Join(j.dir, name) }

// load reads the journal and leaves the deltas open for appending.
func (j *journal) load() (*state, uint64, error) {
	st, applied, err := j.read()
	var damage *damageError
	switch {
	case errors.As(err, &damage):
		j.status.Damage = damage.Error()
		for _, name := range []string{"base", "deltas"} {
			if err := os.Rename(j.path(name), j.path(name+".damaged")); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, 0, err
			}
		}
		j.deltaSize, j.baseSize = 0, 0
		st, applied = &state{}, 0
	case err != nil:
		return nil, 0, err
	}
	if j.deltas, err = os.OpenFile(j.path("deltas"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, 0, err
	}
	if err := j.deltas.Truncate(j.deltaSize); err != nil {
		return nil, 0, err
	}
	return st, applied, syncDir(j.dir)
}

type damageError struct {
	file   string
	offset int64
	what   string
}

func (e *damageError) Error() string {
	return fmt.Sprintf("%s is damaged at byte %d: %s; it was moved aside, and the state will be fetched anew", e.file, e.offset, e.what)
}

func (j *journal) read() (*state, uint64, error) {
	st, applied := &state{}, uint64(0)
	name := j.path("base")
	data, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, 0, err
	default:
		b, err := decodeBase(data)
		if err != nil {
			return nil, 0, &damageError{name, 0, err.Error()}
		}
		st, applied, j.baseSize = stateFromBase(b), b.GetApplied(), int64(len(data))
	}
	name = j.path("deltas")
	data, err = os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return st, applied, nil
	} else if err != nil {
		return nil, 0, err
	}
	for off := 0; off < len(data); {
		entry, n, err := decodeRecord(data[off:])
		if errors.Is(err, errTorn) {
			j.status.TornTail = int64(len(data) - off)
			break
		}
		if err != nil {
			return nil, 0, &damageError{name, int64(off), err.Error()}
		}
		off += n
		j.deltaSize = int64(off)
		if len(entry.GetUpdate()) == 0 {
			applied = max(applied, entry.GetApplied())
			continue
		}
		u := new(agentpb.Update)
		if err := proto.Unmarshal(entry.GetUpdate(), u); err != nil {
			return nil, 0, &damageError{name, int64(off - n), err.Error()}
		}
		if u.GetCluster() == st.cluster && u.GetRevision() <= st.revision {
			continue // the base holds it
		}
		if j.baseSize > 0 && u.GetCluster() != st.cluster {
			continue // of what the base has replaced: the power failed before it was gone
		}
		if u.GetCluster() != st.cluster || u.GetSince() != st.revision {
			return nil, 0, &damageError{name, int64(off - n), fmt.Sprintf("a change since revision %d follows revision %d", u.GetSince(), st.revision)}
		}
		st = st.apply(u)
	}
	return st, applied, nil
}

func encodeBase(b *agentpb.JournalBase) ([]byte, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(b)
	if err != nil {
		return nil, err
	}
	out := append(make([]byte, 0, len(body)+12), journalMagic...)
	out = binary.BigEndian.AppendUint32(out, crc32.Checksum(body, castagnoli))
	return append(out, body...), nil
}

func decodeBase(data []byte) (*agentpb.JournalBase, error) {
	n := len(journalMagic)
	if len(data) < n+4 || string(data[:n-1]) != journalMagic[:n-1] {
		return nil, errors.New("not an agent's journal")
	}
	if data[n-1] != journalMagic[n-1] {
		return nil, fmt.Errorf("format version %d, this program knows version %d", data[n-1], journalMagic[n-1])
	}
	if crc32.Checksum(data[n+4:], castagnoli) != binary.BigEndian.Uint32(data[n:]) {
		return nil, errors.New("the checksum does not match")
	}
	b := new(agentpb.JournalBase)
	return b, proto.Unmarshal(data[n+4:], b)
}

var errTorn = errors.New("cut short")

func encodeRecord(e *agentpb.JournalEntry) ([]byte, error) {
	body, err := proto.Marshal(e)
	if err != nil {
		return nil, err
	}
	out := binary.BigEndian.AppendUint32(make([]byte, 0, len(body)+8), uint32(len(body)))
	out = binary.BigEndian.AppendUint32(out, crc32.Checksum(body, castagnoli))
	return append(out, body...), nil
}

// decodeRecord reads one record and says how many bytes it took. A record that
// reaches past the end, or is the last and does not check, is torn.
func decodeRecord(data []byte) (*agentpb.JournalEntry, int, error) {
	if len(data) < 8 {
		return nil, 0, errTorn
	}
	size := int(binary.BigEndian.Uint32(data))
	if size > maxRecord {
		return nil, 0, fmt.Errorf("a record of %d bytes", size)
	}
	if len(data) < 8+size {
		return nil, 0, errTorn
	}
	body := data[8 : 8+size]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(data[4:]) {
		if len(data) == 8+size {
			return nil, 0, errTorn
		}
		return nil, 0, errors.New("the checksum does not match")
	}
	e := new(agentpb.JournalEntry)
	return e, 8 + size, proto.Unmarshal(body, e)
}

// accept makes next durable: u where it is a delta that continues the state
// before, the whole otherwise, or when the deltas have outgrown the base.
func (j *journal) accept(next *state, u *agentpb.Update, applied uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	err := j.write(next, u, applied)
	j.status.Error = ""
	if err != nil {
		j.status.Error = err.Error()
	}
	return err
}

func (j *journal) write(next *state, u *agentpb.Update, applied uint64) error {
	if !u.GetFull() && j.deltaSize < max(j.baseSize, compactionFloor) {
		body, err := proto.Marshal(u)
		if err != nil {
			return err
		}
		return j.append(&agentpb.JournalEntry{Entry: &agentpb.JournalEntry_Update{Update: body}}, true)
	}
	data, err := encodeBase(next.base(applied))
	if err != nil {
		return err
	}
	if err := writeFile(j.dir, "base", data); err != nil {
		return err
	}
	j.baseSize = int64(len(data))
	if err := j.deltas.Truncate(0); err != nil {
		return err
	}
	j.deltaSize = 0
	return nil
}

// confirm notes that the applier confirmed a revision. It need not be durable:
// lost, it costs one needless look at the kernel.
func (j *journal) confirm(revision uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.append(&agentpb.JournalEntry{Entry: &agentpb.JournalEntry_Applied{Applied: revision}}, false)
}

func (j *journal) append(e *agentpb.JournalEntry, durable bool) error {
	rec, err := encodeRecord(e)
	if err != nil {
		return err
	}
	_, err = j.deltas.WriteAt(rec, j.deltaSize)
	if err == nil && durable {
		err = j.deltas.Sync()
	}
	if err != nil { // what a shorter record leaves of this one would be taken for damage
		return errors.Join(err, j.deltas.Truncate(j.deltaSize))
	}
	j.deltaSize += int64(len(rec))
	return nil
}

func (j *journal) account() JournalStatus {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.status
	s.Bytes = j.baseSize + j.deltaSize
	return s
}

func (j *journal) close() {
	if j.deltas != nil {
		j.deltas.Close()
	}
	j.lock.Close()
}

// writeFile replaces a file whole: after a crash there is the old or the new.
func writeFile(dir, name string, data []byte) error {
	tmp := filepath.Join(dir, name+".tmp")
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, name))
	}
	if err == nil {
		err = syncDir(dir)
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
