// Package wal is the raft log on disk: entries and hard state in segments that
// are only ever appended to, one write and one sync for each batch.
//
// It is a package of its own, so that its format can be tested and fuzzed
// without raft, and private, because who writes to it must keep raft's rules.
//
// # Format
//
// A folder holds segments, <number>.seg in hexadecimal, numbered without a gap.
// A segment is a sequence of frames, each at a multiple of 8 bytes:
//
//	 0  4  CRC-32C of everything after it, payload included
//	 4  4  magic, "rsl1": the last digit is the version of the format
//	 8  4  length of the payload
//	12  4  kind: 1 head, 2 batch, 3 reset, 4 closed
//	16  8  number of the segment
//	24  4  offset in the segment
//	28  4  CRC-32C of the frame before it, in this segment or the one before
//	32     payload, zeros up to a multiple of 8
//
// A frame names its own place and its predecessor. So what an earlier life of
// the file left behind is no frame, and a segment that is not needed any more
// is used again as it is: its blocks are written already, and a sync then costs
// one flush and no journal. A file that is new grows by zeros, well ahead of
// what is written.
//
// Numbers are unsigned varints:
//
//	head    end of the segment before; index and term of the last entry; hard state
//	batch   whether there is a hard state, and that; how many entries, the first
//	        index; for each term, type, length; then their data
//	reset   index and term that the log begins after; hard state
//	closed  nothing: everything before it was synced
//
// A batch that begins at or before an index that is there replaces what
// follows: nothing is overwritten in place.
//
// # Torn or damaged
//
// Frames are synced one after the other, so a crash can only tear the last. A
// frame that does not check with no good one after it, in the last segment, is
// a torn tail: it is cut off and reported. Anywhere else it is damage, an error
// that names file and offset. A log that was closed ends in a frame that says
// so, and then damage of the last batch is told from a torn one, too.
package wal
