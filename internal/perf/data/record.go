package data

import (
	"fmt"
	"math/bits"
	"slices"
)

// A Record is one of the file's, decoded as far as it is used here.
type Record struct {
	Type uint32
	Misc uint16
	Task
	Attr *Attr // of a sample: its event

	// Of samples.
	IP, Period uint64
	Chain      []uint64

	// Of mmap, mmap2 and comm: what is mapped where, and the file's or the task's name.
	Addr, Size, Offset uint64
	Name               string
	BuildID            []byte
	Exec               bool // of mmap: it can be executed; of comm: an exec

	ParentPID, ParentTID int32  // of fork and exit
	Lost                 uint64 // of lost

	IDs []ID // of ID_INDEX
}

// Mode is where the code of a sample, or the mapping, is: MiscKernel, MiscUser, MiscGuestKernel, MiscGuestUser.
func (r *Record) Mode() uint16 { return r.Misc & MiscMode }

// Live reads records that do not come from a file but from the kernel, of one event.
func Live(a Attr) *Reader { return &Reader{Attrs: []Attr{a}} }

// Parse fills rec from a whole record as the kernel writes it. What a record lacks is zero; a sample that is cut is an error.
func (d *Reader) Parse(raw []byte, rec *Record) error {
	if len(raw) < recordHead {
		return fmt.Errorf("a record of %d bytes", len(raw))
	}
	return d.parse(raw, rec)
}

// parse fills rec from raw. What a record lacks is zero; a sample that is cut is an error.
func (d *Reader) parse(raw []byte, rec *Record) error {
	chain := rec.Chain[:0]
	*rec = Record{Type: le.Uint32(raw), Misc: le.Uint16(raw[4:]), Chain: chain}
	f := fields{b: raw[recordHead:]}
	if rec.Type == RecordSample {
		return d.parseSample(rec, &f)
	}
	if rec.Type < 64 { // the kernel's own have a trailer
		if a := &d.Attrs[0]; a.idAll() {
			d.parseTrailer(rec, raw, a)
		}
	}
	switch rec.Type {
	case RecordMmap:
		rec.PID, rec.TID = int32(f.u32()), int32(f.u32())
		rec.Addr, rec.Size, rec.Offset = f.u64(), f.u64(), f.u64()
		rec.Exec = rec.Misc&(1<<13) == 0 // PERF_RECORD_MISC_MMAP_DATA
		rec.Name = f.text()
	case RecordMmap2:
		rec.PID, rec.TID = int32(f.u32()), int32(f.u32())
		rec.Addr, rec.Size, rec.Offset = f.u64(), f.u64(), f.u64()
		if id := f.b; rec.Misc&MiscBuildID != 0 && len(id) >= 24 {
			rec.BuildID = slices.Clone(id[4 : 4+min(20, int(id[0]))])
		}
		f.skip(24)
		rec.Exec = f.u32()&4 != 0 // PROT_EXEC
		f.skip(4)
		rec.Name = f.text()
	case RecordComm:
		rec.PID, rec.TID = int32(f.u32()), int32(f.u32())
		rec.Exec = rec.Misc&MiscCommExec != 0
		rec.Name = f.text()
	case RecordFork, RecordExit:
		rec.PID, rec.ParentPID, rec.TID, rec.ParentTID = int32(f.u32()), int32(f.u32()), int32(f.u32()), int32(f.u32())
	case RecordLost:
		f.skip(8)
		rec.Lost = f.u64()
	case RecordLostSample:
		rec.Lost = f.u64()
	case RecordIDIndex:
		rec.IDs = parseIDIndex(&f)
	}
	return nil
}

// parseIDIndex takes both arrays; older files have only the first.
func parseIDIndex(f *fields) []ID {
	n := f.u64()
	if n > uint64(len(f.b)/32) {
		return nil
	}
	ids := make([]ID, n)
	for i := range ids {
		ids[i] = ID{ID: f.u64(), Index: f.u64(), CPU: int64(f.u64()), TID: int64(f.u64()), VCPU: -1}
	}
	if len(f.b) >= int(n)*16 {
		for i := range ids {
			ids[i].Machine, ids[i].VCPU = int64(f.u64()), int64(f.u64())
		}
	}
	return ids
}

// parseTrailer takes pid, tid, time, cpu and id from the end of raw (struct sample_id).
func (d *Reader) parseTrailer(rec *Record, raw []byte, a *Attr) {
	end := len(raw)
	back := func() uint64 {
		if end -= 8; end < recordHead {
			return 0
		}
		return le.Uint64(raw[end:])
	}
	t := a.SampleType
	if t&SampleIdentifier != 0 {
		rec.ID = back()
	}
	if t&SampleCPU != 0 {
		rec.CPU = uint32(back())
	}
	if t&SampleStreamID != 0 {
		back()
	}
	if t&SampleID != 0 {
		rec.ID = back()
	}
	if t&SampleTime != 0 {
		rec.Time = back()
	}
	if t&SampleTID != 0 {
		v := back()
		rec.PID, rec.TID = int32(v), int32(v>>32)
	}
}

// attrOf finds the event of a sample from the identifier at its beginning, or takes the only one.
func (d *Reader) attrOf(f *fields) *Attr {
	if len(d.Attrs) == 1 || d.Attrs[0].SampleType&SampleIdentifier == 0 {
		return &d.Attrs[0]
	}
	if len(f.b) < 8 {
		return nil
	}
	return d.byID[le.Uint64(f.b)]
}

func (d *Reader) parseSample(rec *Record, f *fields) error {
	a := d.attrOf(f)
	if a == nil {
		return fmt.Errorf("a sample of an event that the file does not name")
	}
	rec.Attr = a
	t := a.SampleType
	if t&SampleIdentifier != 0 {
		rec.ID = f.u64()
	}
	if t&SampleIP != 0 {
		rec.IP = f.u64()
	}
	if t&SampleTID != 0 {
		rec.PID, rec.TID = int32(f.u32()), int32(f.u32())
	}
	if t&SampleTime != 0 {
		rec.Time = f.u64()
	}
	if t&SampleAddr != 0 {
		f.skip(8)
	}
	if t&SampleID != 0 {
		rec.ID = f.u64()
	}
	if t&SampleStreamID != 0 {
		f.skip(8)
	}
	if t&SampleCPU != 0 {
		rec.CPU = f.u32()
		f.skip(4)
	}
	rec.Period = a.Period
	if a.Freq {
		rec.Period = 1
	}
	if t&SamplePeriod != 0 {
		rec.Period = f.u64()
	}
	if t&SampleRead != 0 {
		skipRead(f, a.ReadFormat)
	}
	if t&SampleCallchain != 0 {
		n := f.u64()
		if n > uint64(len(f.b)/8) {
			return fmt.Errorf("a call chain of %d entries in a sample of %d bytes", n, len(f.b))
		}
		for range n {
			rec.Chain = append(rec.Chain, f.u64())
		}
	}
	// What else a sample may hold comes behind that, and is not used.
	if f.short {
		return fmt.Errorf("a sample that is too short for what its event says it holds")
	}
	return nil
}

// skipRead skips counter values (PERF_SAMPLE_READ).
func skipRead(f *fields, format uint64) {
	n, each := uint64(1), 8
	if format&readGroup != 0 {
		n = f.u64()
	}
	each += 8 * bits.OnesCount64(format&(readFormatID|readLost))
	f.skip(8 * bits.OnesCount64(format&(readTotalEnabled|readTotalRunning)))
	if n > uint64(len(f.b)/each) {
		f.skip(-1)
		return
	}
	f.skip(int(n) * each)
}

// timeOf is a raw record's time, without parsing all of it; ok is false where it has none.
func (d *Reader) timeOf(raw []byte) (t uint64, ok bool) {
	kind := le.Uint32(raw)
	if kind >= 64 {
		return 0, false
	}
	if kind != RecordSample {
		a := &d.Attrs[0]
		if !a.idAll() || a.SampleType&SampleTime == 0 {
			return 0, false
		}
		end := len(raw) - 8*bits.OnesCount64(a.SampleType&(SampleIdentifier|SampleCPU|SampleStreamID|SampleID)) - 8
		if end < recordHead {
			return 0, false
		}
		return le.Uint64(raw[end:]), true
	}
	f := fields{b: raw[recordHead:]}
	a := d.attrOf(&f)
	if a == nil || a.SampleType&SampleTime == 0 {
		return 0, false
	}
	at := recordHead + 8*bits.OnesCount64(a.SampleType&(SampleIdentifier|SampleIP|SampleTID))
	if at+8 > len(raw) {
		return 0, false
	}
	return le.Uint64(raw[at:]), true
}
