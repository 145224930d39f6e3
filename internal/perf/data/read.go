package data

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
)

// ErrTruncated is a file that ends before its data does, as where its writer was killed: what came before has been read.
var ErrTruncated = errors.New("the file is cut off")

// Bounds of what a file may ask for.
const (
	maxAttrs = 4096
	maxIDs   = 1 << 20
)

// A Reader reads a file of perf.
type Reader struct {
	r    io.ReaderAt
	size int64

	Attrs    []Attr
	Host     Host
	BuildIDs []BuildID
	// IDs says of an event's id to which CPU, task or machine it belongs; more come with the records.
	IDs map[uint64]ID

	byID       map[uint64]*Attr
	data       section
	compressed bool
}

type section struct{ off, size int64 }

// A BuildID is an entry of the build-id section: what a file was when it was sampled.
type BuildID struct {
	Misc uint16 // whose it is: MiscKernel, MiscUser, MiscGuestKernel …
	PID  int32  // of the machine, -1 for the host
	ID   []byte
	Name string
}

// NewReader reads the head of a file of size bytes.
func NewReader(r io.ReaderAt, size int64) (*Reader, error) {
	d := &Reader{r: r, size: size, IDs: map[uint64]ID{}, byID: map[uint64]*Attr{}}
	head, err := d.bytes(section{0, headerSize}, headerSize)
	if err != nil {
		return nil, fmt.Errorf("perf.data: %w", err)
	}
	switch {
	case string(head[:8]) == "2ELIFREP":
		return nil, errors.New("perf.data: written on a big-endian machine, which is not read here")
	case string(head[:8]) != magic:
		return nil, errors.New("perf.data: not a file of perf record (no PERFILE2 at its beginning)")
	case le.Uint64(head[8:]) == 16:
		return nil, errors.New("perf.data: written to a pipe (perf record -o -): make a file of it with perf inject -i FILE -o NEW")
	case le.Uint64(head[8:]) != headerSize:
		return nil, fmt.Errorf("perf.data: a header of %d bytes", le.Uint64(head[8:]))
	}
	sect := func(at int) section { return section{int64(le.Uint64(head[at:])), int64(le.Uint64(head[at+8:]))} }
	d.data = sect(40)
	if d.data.off < headerSize || d.data.off > size {
		return nil, fmt.Errorf("perf.data: data at %d of %d bytes", d.data.off, size)
	}
	if err := d.readAttrs(sect(24), int64(le.Uint64(head[16:]))); err != nil {
		return nil, fmt.Errorf("perf.data: events: %w", err)
	}
	if d.data.size <= 0 || d.data.size > size-d.data.off {
		// Its writer was killed. There is nothing behind the data then.
		d.data.size = size - d.data.off
		return d, nil
	}
	if err := d.readFeatures(le.Uint64(head[72:])); err != nil {
		return nil, fmt.Errorf("perf.data: %w", err)
	}
	return d, nil
}

// bytes reads a section of at most limit bytes.
func (d *Reader) bytes(s section, limit int64) ([]byte, error) {
	if s.off < 0 || s.size < 0 || s.size > limit || s.off > d.size-s.size {
		return nil, fmt.Errorf("%w: %d bytes at %d of %d", ErrTruncated, s.size, s.off, d.size)
	}
	b := make([]byte, s.size)
	if _, err := d.r.ReadAt(b, s.off); err != nil {
		return nil, err
	}
	return b, nil
}

func (d *Reader) readAttrs(s section, each int64) error {
	if each < 64+16 || each > 4096 || s.size%each != 0 || s.size/each > maxAttrs {
		return fmt.Errorf("%d bytes, in pieces of %d", s.size, each)
	}
	b, err := d.bytes(s, maxAttrs*4096)
	if err != nil {
		return err
	}
	total := int64(0)
	for ; len(b) > 0; b = b[each:] {
		p := make([]byte, attrSize)
		copy(p, b[:each-16])
		a := Attr{
			Type: le.Uint32(p), Config: le.Uint64(p[8:]), Period: le.Uint64(p[16:]), SampleType: le.Uint64(p[24:]), ReadFormat: le.Uint64(p[32:]),
			Flags: le.Uint64(p[40:]), BranchType: le.Uint64(p[72:]), RegsUser: le.Uint64(p[80:]),
		}
		a.Freq = a.Flags&flagFreq != 0
		ids := section{int64(le.Uint64(b[each-16:])), int64(le.Uint64(b[each-8:]))}
		if total += ids.size; total > 8*maxIDs {
			return fmt.Errorf("more than %d ids", maxIDs)
		}
		list, err := d.bytes(ids, 8*maxIDs)
		if err != nil {
			return err
		}
		for ; len(list) >= 8; list = list[8:] {
			a.IDs = append(a.IDs, le.Uint64(list))
		}
		d.Attrs = append(d.Attrs, a)
	}
	if len(d.Attrs) == 0 {
		return errors.New("none")
	}
	for i := range d.Attrs {
		a := &d.Attrs[i]
		if i > 0 && len(d.Attrs) > 1 && a.SampleType&SampleIdentifier == 0 && a.SampleType != d.Attrs[0].SampleType {
			return errors.New("samples of several shapes without an identifier")
		}
		for _, id := range a.IDs {
			d.byID[id] = a
		}
	}
	return nil
}

func (d *Reader) readFeatures(mask uint64) error {
	at := d.data.off + d.data.size
	for bit := range 64 {
		if mask>>bit&1 == 0 {
			continue
		}
		place, err := d.bytes(section{at, 16}, 16)
		if err != nil {
			return err
		}
		at += 16
		s := section{int64(le.Uint64(place)), int64(le.Uint64(place[8:]))}
		switch bit {
		case FeatureBuildID, FeatureHostname, FeatureOSRelease, FeatureVersion, FeatureCmdline, FeatureEventDesc, FeatureCPUs, FeatureCompress:
		default:
			continue
		}
		b, err := d.bytes(s, maxFeatureSection)
		if err != nil {
			return err
		}
		d.feature(bit, &fields{b: b})
	}
	return nil
}

// feature takes what a section says. A section that is broken says nothing: samples do not depend on it.
func (d *Reader) feature(bit int, f *fields) {
	switch bit {
	case FeatureHostname:
		d.Host.Name = f.padded()
	case FeatureOSRelease:
		d.Host.Release = f.padded()
	case FeatureVersion:
		d.Host.Version = f.padded()
	case FeatureCPUs:
		d.Host.CPUs = int(f.u32())
	case FeatureCmdline:
		for n := f.u32(); n > 0 && !f.short && len(d.Host.Cmdline) < 4096; n-- {
			d.Host.Cmdline = append(d.Host.Cmdline, f.padded())
		}
	case FeatureCompress:
		d.compressed = true
	case FeatureEventDesc:
		n, size := f.u32(), int(f.u32())
		for i := 0; i < int(n) && !f.short && i < maxAttrs; i++ {
			f.skip(size)
			ids := int(f.u32())
			name := f.padded()
			for ; ids > 0 && !f.short; ids-- {
				if a := d.byID[f.u64()]; a != nil && a.Name == "" {
					a.Name = name
				}
			}
			if i < len(d.Attrs) && d.Attrs[i].Name == "" {
				d.Attrs[i].Name = name
			}
		}
	case FeatureBuildID:
		for len(f.b) >= 8 && !f.short && len(d.BuildIDs) < maxIDs {
			misc, size := le.Uint16(f.b[4:]), int(le.Uint16(f.b[6:]))
			if size < 36 || size > len(f.b) {
				return
			}
			p := f.b[8:size]
			f.skip(size)
			n := 20
			if misc&(1<<15) != 0 { // PERF_RECORD_MISC_BUILD_ID_SIZE: its length follows it
				n = min(20, int(p[24]))
			}
			name, _, _ := bytes.Cut(p[28:], []byte{0})
			d.BuildIDs = append(d.BuildIDs, BuildID{Misc: misc & MiscMode, PID: int32(le.Uint32(p)), ID: bytes.Clone(p[4 : 4+n]), Name: string(name)})
		}
	}
}

// EventName is what the file calls an event, or what perf would.
func (a *Attr) EventName() string {
	switch {
	case a.Name != "":
		name, _, _ := strings.Cut(a.Name, "\x00")
		return name
	case a.Type == TypeSoftware && a.Config == SoftwareCPU:
		return "cpu-clock"
	case a.Type == TypeSoftware && a.Config == SoftwareTask:
		return "task-clock"
	case a.Type == TypeHardware && a.Config == 0:
		return "cycles"
	case a.Type == TypeHardware && a.Config == 1:
		return "instructions"
	}
	return fmt.Sprintf("event %d:%#x", a.Type, a.Config)
}

// fields reads a record or section from its front. What is not there is zero, and noted.
type fields struct {
	b     []byte
	short bool
}

func (f *fields) skip(n int) {
	if n < 0 || n > len(f.b) {
		f.b, f.short = nil, true
		return
	}
	f.b = f.b[n:]
}

func (f *fields) u32() uint32 {
	if len(f.b) < 4 {
		f.skip(4)
		return 0
	}
	v := le.Uint32(f.b)
	f.b = f.b[4:]
	return v
}

func (f *fields) u64() uint64 {
	if len(f.b) < 8 {
		f.skip(8)
		return 0
	}
	v := le.Uint64(f.b)
	f.b = f.b[8:]
	return v
}

// padded is a string with its length in front.
func (f *fields) padded() string {
	n := int(f.u32())
	if n < 0 || n > len(f.b) {
		f.skip(-1)
		return ""
	}
	s, _, _ := bytes.Cut(f.b[:n], []byte{0})
	f.skip(n)
	return string(s)
}

// text is what is left, up to a NUL.
func (f *fields) text() string {
	s, _, _ := bytes.Cut(f.b, []byte{0})
	return string(s)
}

// Records goes through the file's records in the order of time. A record is valid until the next. The last may be an error: [ErrTruncated] or
// what is wrong with the file, behind all that could be read.
func (d *Reader) Records() iter.Seq2[*Record, error] {
	return func(yield func(*Record, error) bool) {
		q := newQueue(d)
		err := d.scan(func(raw []byte) bool {
			more, err := q.take(raw, yield)
			if err != nil {
				q.err = err
			}
			return more && err == nil
		})
		if q.stopped {
			return
		}
		if err == nil {
			err = q.err
		}
		if !q.flush(^uint64(0), yield) {
			return
		}
		if err != nil {
			yield(nil, fmt.Errorf("perf.data: %w", err))
		}
	}
}

// window is how much of the file is read at once.
const window = 1 << 20

// scan calls do for each record of the data as it stands in the file, until it returns false.
func (d *Reader) scan(do func(raw []byte) bool) error {
	buf := make([]byte, 0, window+maxRecord+8)
	at, end := d.data.off, d.data.off+d.data.size
	unpack := decompressor{do: do}
	defer unpack.close()
	for at < end || len(buf) > 0 {
		if n := min(end-at, window-int64(len(buf))); n > 0 {
			have := len(buf)
			buf = buf[:have+int(n)]
			if _, err := d.r.ReadAt(buf[have:], at); err != nil {
				return fmt.Errorf("%w: %v", ErrTruncated, err)
			}
			at += n
		}
		rest := buf
		for len(rest) >= recordHead {
			size := int(le.Uint16(rest[6:]))
			if size < recordHead {
				return fmt.Errorf("a record of %d bytes at %d", size, at-int64(len(rest)))
			}
			if size > len(rest) {
				break
			}
			record := rest[:size]
			rest = rest[size:]
			switch le.Uint32(record) {
			case RecordAuxtrace: // its data follows it
				if size < 16 {
					return fmt.Errorf("an AUX record of %d bytes", size)
				}
				skip := int64(le.Uint64(record[8:]))
				if skip < 0 || skip > end-at+int64(len(rest)) {
					return fmt.Errorf("%w: %d bytes of trace", ErrTruncated, skip)
				}
				in := min(skip, int64(len(rest)))
				rest = rest[in:]
				at += skip - in
			case RecordCompressed, RecordCompressed2:
				if more, err := unpack.feed(record); err != nil || !more {
					return err
				}
			default:
				if !do(record) {
					return nil
				}
			}
		}
		if at >= end && len(rest) > 0 {
			return fmt.Errorf("%w within a record, %d bytes before its end", ErrTruncated, len(rest))
		}
		buf = append(buf[:0], rest...)
	}
	return nil
}
