package guest

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// A Message is a record of the kernel's log.
type Message struct {
	Seq      uint64
	Time     time.Duration // since boot, by the scheduler's clock
	Facility int           // syslog's: 0 is the kernel
	Level    int           // 0 (emerg) to 7 (debug)
	Text     string        // printable, lines ended by '\n' but for the last
}

// Bounds of a kernel's log in bytes, and of the records in its index.
const (
	maxLogBytes   = 256 << 20
	maxLogRecords = 1 << 22
)

// Log gives the records of the kernel's log whose number is at least since, in order. Records that are being written while this is read
// are left out, and come the next time.
func (k *Kernel) Log(since uint64) ([]Message, error) {
	if at := k.variable("prb"); at >= kernelHalf {
		return k.ringLog(at, since)
	}
	if k.address("log_first_idx") != 0 {
		return k.recordLog(since)
	}
	return nil, errors.New("guest: no kernel log found (no symbol prb or log_first_idx)")
}

// A ring is the log since v5.10 (kernel/printk/printk_ringbuffer.c): descriptors with states, infos, and blocks of text.
type ring struct {
	descs, infos, text []byte
	sizeBits           uint64
	desc, info         *structure
}

// States of a descriptor, the two upper bits of its state_var.
const (
	descCommitted = 1
	descFinalized = 2
	descIDMask    = 1<<62 - 1
)

func (k *Kernel) ringLog(at, since uint64) ([]Message, error) {
	var b [8]byte
	rb, err := k.load("printk_ringbuffer", at)
	if err != nil {
		return nil, err
	}
	r := ring{desc: k.structure("prb_desc"), info: k.structure("printk_info")}
	count, size := rb.uint("desc_ring.count_bits"), rb.uint("text_data_ring.size_bits")
	if count > 22 || size > 28 || r.desc.size == 0 || r.info.size == 0 {
		return nil, fmt.Errorf("guest: kernel log of 2^%d records and 2^%d bytes is not believed", count, size)
	}
	r.sizeBits = size
	read := func(p uint64, n uint64) ([]byte, error) {
		b := make([]byte, n)
		return b, k.space.ReadAt(b, p)
	}
	// The text first: what is finalized before and still finalized after it was read, was whole.
	head := rb.uint("desc_ring.head_id.counter")
	tail := rb.uint("desc_ring.tail_id.counter")
	before, err := read(rb.uint("desc_ring.descs"), r.desc.size<<count)
	if err != nil {
		return nil, err
	}
	if r.infos, err = read(rb.uint("desc_ring.infos"), r.info.size<<count); err != nil {
		return nil, err
	}
	if r.text, err = read(rb.uint("text_data_ring.data"), 1<<size); err != nil {
		return nil, err
	}
	if r.descs, err = read(rb.uint("desc_ring.descs"), r.desc.size<<count); err != nil {
		return nil, err
	}
	state, ok := r.desc.field("state_var.counter")
	if !ok {
		return nil, errNoBTF
	}
	var all []Message
	n := (head - tail) & descIDMask
	if n >= 1<<count {
		return nil, errors.New("guest: kernel log: its head and tail do not fit")
	}
	for i := range n + 1 {
		id := (tail + i) & descIDMask
		off := id & (1<<count - 1) * r.desc.size
		copy(b[:], before[off+state.Off:])
		was := le.Uint64(b[:])
		d := object{r.desc, 0, r.descs[off : off+r.desc.size]}
		now := d.uint("state_var.counter")
		if was&descIDMask != id || now&descIDMask != id || !readable(was>>62) || !readable(now>>62) {
			continue
		}
		info := object{r.info, 0, r.infos[id&(1<<count-1)*r.info.size:][:r.info.size]}
		seq := info.uint("seq")
		if seq < since {
			continue
		}
		text, ok := r.block(d.uint("text_blk_lpos.begin"), d.uint("text_blk_lpos.next"), id)
		if !ok {
			continue
		}
		text = text[:min(uint64(len(text)), info.uint("text_len"))]
		all = append(all, Message{
			Seq: seq, Time: time.Duration(info.uint("ts_nsec")), Facility: int(info.uint("facility")), Level: int(info.uint("level")),
			Text: logText(text),
		})
	}
	return all, nil
}

// readable tells of a descriptor's state whether its record is whole: one that is committed may still be added to.
func readable(state uint64) bool { return state == descFinalized || state == descCommitted }

// block is a record's text: at begin, up to next, logical positions whose lower bits are places in the ring; one that would not fit at
// the end starts at 0.
func (r *ring) block(begin, next, id uint64) ([]byte, bool) {
	const header = 8 // the descriptor's id
	if begin&1 != 0 || next&1 != 0 {
		return nil, true // no data (printk_ringbuffer.h, NO_LPOS, FAILED_LPOS)
	}
	mask := uint64(1)<<r.sizeBits - 1
	from, to := begin&mask, next&mask
	switch {
	case begin>>r.sizeBits == next>>r.sizeBits:
	case to == 0 && begin>>r.sizeBits+1 == next>>r.sizeBits: // up to the very end
		to = mask + 1
	case (begin+mask+1)>>r.sizeBits == next>>r.sizeBits:
		from = 0
	default:
		return nil, false
	}
	if to < from+header || le.Uint64(r.text[from:])&descIDMask != id {
		return nil, false
	}
	return r.text[from+header : to], true
}

// recordLog reads the log of kernels before v5.10: struct printk_log, text and a dictionary, one behind the other; a length of 0 means that
// the next is at the start.
func (k *Kernel) recordLog(since uint64) ([]Message, error) {
	size, err := k.space.Uint32(k.address("log_buf_len"))
	if err != nil || size == 0 || size > maxLogBytes {
		return nil, fmt.Errorf("guest: kernel log of %d bytes is not believed", size)
	}
	first, err := k.space.Uint32(k.address("log_first_idx"))
	if err != nil {
		return nil, err
	}
	next, err := k.space.Uint32(k.address("log_next_idx"))
	if err != nil {
		return nil, err
	}
	raw := make([]byte, size)
	if err := k.space.ReadAt(raw, k.variable("log_buf")); err != nil {
		return nil, err
	}
	header := k.structure("printk_log").size // 20 with CONFIG_PRINTK_CALLER
	if header != 20 {
		header = 16
	}
	return parseRecords(raw, header, first, next, k.variable("log_first_seq"), since), nil
}

func parseRecords(raw []byte, header uint64, first, next uint32, seq, since uint64) (all []Message) {
	wrapped := false
	for p := uint64(first); p != uint64(next) && len(all) < maxLogRecords; seq++ {
		if p+header > uint64(len(raw)) {
			break
		}
		e := raw[p:]
		length, text := uint64(le.Uint16(e[8:])), uint64(le.Uint16(e[10:]))
		if length == 0 {
			if wrapped {
				break
			}
			p, wrapped = 0, true
			seq--
			continue
		}
		if length < header || length > uint64(len(e)) || header+text > length {
			break
		}
		if seq >= since {
			all = append(all, Message{
				Seq: seq, Time: time.Duration(le.Uint64(e)), Facility: int(e[14]), Level: int(e[15] >> 5 & 7), Text: logText(e[header : header+text]),
			})
		}
		p += length
	}
	return all
}

// logText makes a record's text printable: as in /dev/kmsg, what is not becomes \xNN; line ends and tabs stay.
func logText(b []byte) string {
	var s strings.Builder
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == '\n' || r == '\t' || r != utf8.RuneError && unicode.IsPrint(r) {
			s.Write(b[:n])
		} else {
			for _, c := range b[:n] {
				fmt.Fprintf(&s, `\x%02x`, c)
			}
		}
		b = b[n:]
	}
	return s.String()
}
