package guest

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"
)

// logRecord is a record of a fake ring: its state and its text.
type logRecord struct {
	state uint64
	text  string
	level uint64
}

// fakeRing makes a log of 1<<countBits descriptors and 1<<sizeBits bytes of text, in which records begin at number first.
func fakeRing(countBits, sizeBits, first uint64, records []logRecord) *fake {
	f := newFake(1 << 20)
	desc, info := f.structure("prb_desc"), f.structure("printk_info")
	descs, infos := f.alloc(desc.size<<countBits), f.alloc(info.size<<countBits)
	text := f.alloc(1 << sizeBits)
	lpos, size := first*16, uint64(1)<<sizeBits
	for i, r := range records {
		id := first + uint64(i)
		n := (8 + uint64(len(r.text)) + 7) &^ 7
		begin, data := lpos, lpos%size
		if data+n > size { // it would not fit: it starts at 0
			data, lpos = 0, lpos/size*size+size
		}
		next := lpos + n
		lpos = next
		if r.text == "" {
			begin, next, lpos = 1, 1, begin
		} else {
			binary.LittleEndian.PutUint64(f.m.ram[text-direct+data:], id)
			copy(f.m.ram[text-direct+data+8:], r.text)
		}
		slot := id & (1<<countBits - 1)
		f.set("prb_desc", descs+slot*desc.size, map[string]uint64{
			"state_var.counter": id | r.state<<62, "text_blk_lpos.begin": begin, "text_blk_lpos.next": next,
		})
		f.set("printk_info", infos+slot*info.size, map[string]uint64{
			"seq": id, "ts_nsec": id * 1e6, "text_len": uint64(len(r.text)), "level": r.level,
		})
	}
	rb := f.new("printk_ringbuffer", map[string]uint64{
		"desc_ring.count_bits": countBits, "desc_ring.descs": descs, "desc_ring.infos": infos,
		"desc_ring.head_id.counter": first + uint64(len(records)) - 1, "desc_ring.tail_id.counter": first,
		"text_data_ring.size_bits": sizeBits, "text_data_ring.data": text,
	})
	at := f.alloc(8)
	put(f.m, at-direct, rb)
	f.symbol("prb", at)
	return f
}

func TestLogRing(t *testing.T) {
	records := []logRecord{
		{descFinalized, "one", 6}, {descFinalized, "", 6}, {descCommitted, "three\x1b[2J\nand more", 4}, {0, "being written", 6},
		{3, "reused", 6}, {descFinalized, "the last, which does not fit at the end of the ring, and so is at its start", 3},
	}
	for _, first := range []uint64{0, 7, 100} {
		f := fakeRing(3, 8, first, records)
		all, err := f.Log(0)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range all {
			got = append(got, fmt.Sprintf("%d %d %v %s", m.Seq-first, m.Level, m.Time-time.Duration(first)*time.Millisecond, m.Text))
		}
		want := []string{"0 6 0s one", "1 6 1ms ", `2 4 2ms three\x1b[2J` + "\nand more", "5 3 5ms " + records[5].text}
		if !slices.Equal(got, want) {
			t.Errorf("from number %d:\n%q, want\n%q", first, got, want)
		}
		if all, err := f.Log(first + 3); err != nil || len(all) != 1 {
			t.Errorf("since the fourth: %v, %v, want the last alone", all, err)
		}
	}
}

func TestLogOfRecordsWraps(t *testing.T) {
	le := binary.LittleEndian
	record := func(b []byte, text string, level byte) []byte {
		n := (16 + len(text) + 7) &^ 7
		e := make([]byte, n)
		le.PutUint64(e, 42e9)
		le.PutUint16(e[8:], uint16(n))
		le.PutUint16(e[10:], uint16(len(text)))
		e[15] = level << 5
		copy(e[16:], text)
		return append(b, e...)
	}
	raw := record(nil, "third", 3)
	end := len(raw)
	raw = append(raw, make([]byte, 64)...)
	first := len(raw)
	raw = record(record(raw, "first", 6), "second", 6)
	raw = append(raw, make([]byte, 24)...) // a length of 0: go on at the start
	var got []string
	for _, m := range parseRecords(raw, 16, uint32(first), uint32(end), 10, 0) {
		got = append(got, fmt.Sprintln(m.Seq, m.Level, m.Time, m.Text))
	}
	if want := []string{"10 6 42s first\n", "11 6 42s second\n", "12 3 42s third\n"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func FuzzLogRecords(f *testing.F) {
	f.Add(make([]byte, 64), uint32(0), uint32(32))
	f.Fuzz(func(t *testing.T, raw []byte, first, next uint32) {
		if all := parseRecords(raw, 16, first, next, 0, 0); len(all) > len(raw)/16*2 {
			t.Errorf("%d records in %d bytes", len(all), len(raw))
		}
	})
}
