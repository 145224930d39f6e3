package data

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
)

// A Task is who a record is about, when and where.
type Task struct {
	PID, TID int32
	Time     uint64 // ns
	CPU      uint32
	ID       uint64 // of the event
}

// A Writer writes a file. What was flushed is a whole file: a writer that is killed loses only what came after.
type Writer struct {
	f     *os.File
	base  int64 // where the data begins
	attr  Attr
	host  Host
	end   int64 // of the data, those on disk
	buf   []byte
	dirty bool
	err   error
}

// Host is what the file says of the machine it was made on.
type Host struct {
	Name, Release, Version string
	Cmdline                []string
	CPUs                   int
}

// flushAt is how many bytes are gathered.
const flushAt = 256 << 10

// writtenSamples is what samples of a Writer hold.
const writtenSamples = SampleIdentifier | SampleIP | SampleTID | SampleTime | SampleCPU | SamplePeriod | SampleCallchain

// NewWriter begins a file in f, which it does not close. Each vCPU of a guest, and each source of the host, is an id: ids[0] is used where a
// record has none. hz is how often a second they were sampled.
func NewWriter(f *os.File, host Host, hz uint64, ids []ID) (*Writer, error) {
	w := &Writer{f: f, host: host, attr: Attr{
		Type: TypeSoftware, Config: SoftwareCPU, Period: hz, Freq: true, SampleType: writtenSamples, ReadFormat: readFormatID,
		Flags: flagMmap | flagComm | flagFreq | flagSampleIDAll | flagMmap2 | flagCommExec | flagUseClockID,
	}}
	for _, id := range ids {
		w.attr.IDs = append(w.attr.IDs, id.ID)
	}
	w.base = headerSize + int64(8*len(ids)) + attrSize + 16
	w.base = (w.base + 7) &^ 7
	w.end = w.base
	head := make([]byte, w.base)
	for i, id := range w.attr.IDs {
		le.PutUint64(head[headerSize+8*i:], id)
	}
	w.putAttr(head[headerSize+8*len(ids):])
	if _, err := f.WriteAt(head, 0); err != nil {
		return nil, err
	}
	w.idIndex(ids)
	return w, w.Flush()
}

// putAttr writes a perf_event_attr and its place of ids.
func (w *Writer) putAttr(p []byte) {
	le.PutUint32(p[0:], w.attr.Type)
	le.PutUint32(p[4:], attrSize)
	le.PutUint64(p[8:], w.attr.Config)
	le.PutUint64(p[16:], w.attr.Period)
	le.PutUint64(p[24:], w.attr.SampleType)
	le.PutUint64(p[32:], w.attr.ReadFormat)
	le.PutUint64(p[40:], w.attr.Flags)
	le.PutUint32(p[92:], clockMonotonic)
	le.PutUint64(p[attrSize:], headerSize)
	le.PutUint64(p[attrSize+8:], uint64(8*len(w.attr.IDs)))
}

// record begins a record; done ends it.
func (w *Writer) record(kind uint32, misc uint16) (start int) {
	start = len(w.buf)
	w.buf = le.AppendUint32(w.buf, kind)
	w.buf = le.AppendUint16(w.buf, misc)
	w.buf = le.AppendUint16(w.buf, 0)
	return start
}

func (w *Writer) done(start int) {
	size := len(w.buf) - start
	if size > maxRecord {
		w.buf = w.buf[:start]
		w.fail(fmt.Errorf("perf.data: a record of %d bytes", size))
		return
	}
	le.PutUint16(w.buf[start+6:], uint16(size))
	w.dirty = true
	if len(w.buf) >= flushAt {
		w.fail(w.flush())
	}
}

func (w *Writer) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

// text appends a string with its NUL, padded to 8 bytes, cut where a record could not hold it.
func (w *Writer) text(s string) {
	s = s[:min(len(s), 4000)]
	w.buf = append(w.buf, s...)
	w.buf = append(w.buf, make([]byte, 8-len(s)%8)...)
}

// trailer is what sample_id_all puts behind records other than samples.
func (w *Writer) trailer(t Task) {
	w.buf = le.AppendUint32(w.buf, uint32(t.PID))
	w.buf = le.AppendUint32(w.buf, uint32(t.TID))
	w.buf = le.AppendUint64(w.buf, t.Time)
	w.buf = le.AppendUint32(w.buf, t.CPU)
	w.buf = le.AppendUint32(w.buf, 0)
	w.buf = le.AppendUint64(w.buf, t.ID)
}

// idsPerRecord keeps records of ID_INDEX below their largest size.
const idsPerRecord = 1000

func (w *Writer) idIndex(ids []ID) {
	for part := range slices.Chunk(ids, idsPerRecord) {
		at := w.record(RecordIDIndex, 0)
		w.buf = le.AppendUint64(w.buf, uint64(len(part)))
		for _, id := range part {
			for _, v := range []uint64{id.ID, id.Index, uint64(id.CPU), uint64(id.TID)} {
				w.buf = le.AppendUint64(w.buf, v)
			}
		}
		for _, id := range part {
			w.buf = le.AppendUint64(w.buf, uint64(id.Machine))
			w.buf = le.AppendUint64(w.buf, uint64(id.VCPU))
		}
		w.done(at)
	}
}

// Mmap says that [addr, addr+size) of a machine's kernel holds a module; misc is MiscKernel or MiscGuestKernel. The kernel itself is named
// "[kernel.kallsyms]_stext" and has its own address as offset, a module "[name]".
func (w *Writer) Mmap(misc uint16, t Task, addr, size, offset uint64, name string) error {
	at := w.record(RecordMmap, misc)
	w.buf = le.AppendUint32(w.buf, ^uint32(0))
	w.buf = le.AppendUint32(w.buf, 0)
	for _, v := range []uint64{addr, size, offset} {
		w.buf = le.AppendUint64(w.buf, v)
	}
	w.text(name)
	w.trailer(t)
	w.done(at)
	return w.err
}

// Mmap2 says that a process has a file mapped, executable, and the file's build id where it has one of at most 20 bytes.
func (w *Writer) Mmap2(misc uint16, t Task, addr, size, offset uint64, name string, buildID []byte) error {
	at := w.record(RecordMmap2, misc|MiscBuildID)
	w.buf = le.AppendUint32(w.buf, uint32(t.PID))
	w.buf = le.AppendUint32(w.buf, uint32(t.TID))
	for _, v := range []uint64{addr, size, offset} {
		w.buf = le.AppendUint64(w.buf, v)
	}
	var id [24]byte
	id[0] = byte(copy(id[4:], buildID))
	w.buf = append(w.buf, id[:]...)
	w.buf = le.AppendUint32(w.buf, 5) // PROT_READ | PROT_EXEC
	w.buf = le.AppendUint32(w.buf, 2) // MAP_PRIVATE
	w.text(name)
	w.trailer(t)
	w.done(at)
	return w.err
}

// Comm names a task.
func (w *Writer) Comm(misc uint16, t Task, name string) error {
	at := w.record(RecordComm, misc)
	w.buf = le.AppendUint32(w.buf, uint32(t.PID))
	w.buf = le.AppendUint32(w.buf, uint32(t.TID))
	w.text(name[:min(len(name), 15)])
	w.trailer(t)
	w.done(at)
	return w.err
}

// Fork says that the task t was made by parent.
func (w *Writer) Fork(misc uint16, t Task, parentPID, parentTID int32) error {
	at := w.record(RecordFork, misc)
	for _, v := range []uint32{uint32(t.PID), uint32(parentPID), uint32(t.TID), uint32(parentTID)} {
		w.buf = le.AppendUint32(w.buf, v)
	}
	w.buf = le.AppendUint64(w.buf, t.Time)
	w.trailer(t)
	w.done(at)
	return w.err
}

// Lost says that n records could not be taken.
func (w *Writer) Lost(t Task, n uint64) error {
	at := w.record(RecordLost, 0)
	w.buf = le.AppendUint64(w.buf, t.ID)
	w.buf = le.AppendUint64(w.buf, n)
	w.trailer(t)
	w.done(at)
	return w.err
}

// Sample is one sample: chain is leaf first, with the marks ContextKernel and ContextUser, also for a guest (perf takes them in the sample's own
// machine).
func (w *Writer) Sample(misc uint16, t Task, ip, period uint64, chain []uint64) error {
	at := w.record(RecordSample, misc)
	w.buf = le.AppendUint64(w.buf, t.ID)
	w.buf = le.AppendUint64(w.buf, ip)
	w.buf = le.AppendUint32(w.buf, uint32(t.PID))
	w.buf = le.AppendUint32(w.buf, uint32(t.TID))
	w.buf = le.AppendUint64(w.buf, t.Time)
	w.buf = le.AppendUint32(w.buf, t.CPU)
	w.buf = le.AppendUint32(w.buf, 0)
	w.buf = le.AppendUint64(w.buf, period)
	chain = chain[:min(len(chain), 4096)]
	w.buf = le.AppendUint64(w.buf, uint64(len(chain)))
	for _, a := range chain {
		w.buf = le.AppendUint64(w.buf, a)
	}
	w.done(at)
	return w.err
}

// flush appends what was gathered. The header on disk names no section behind the data while they are being overwritten.
func (w *Writer) flush() error {
	if err := w.header(w.end, 0); err != nil {
		return err
	}
	n, err := w.f.WriteAt(w.buf, w.end)
	if err != nil {
		return err
	}
	w.end += int64(n)
	w.buf = w.buf[:0]
	return nil
}

// Flush makes the file whole as of now.
func (w *Writer) Flush() error {
	if w.err != nil || !w.dirty {
		return w.err
	}
	if err := w.flush(); err != nil {
		w.fail(err)
		return err
	}
	behind, mask := w.sections()
	if _, err := w.f.WriteAt(behind, w.end); err != nil {
		w.fail(err)
		return err
	}
	w.fail(w.header(w.end, mask))
	w.dirty = w.err != nil
	return w.err
}

// header is the file's (perf_file_header), with data up to end.
func (w *Writer) header(end int64, features uint64) error {
	var p [headerSize]byte
	copy(p[:], magic)
	le.PutUint64(p[8:], headerSize)
	le.PutUint64(p[16:], attrSize+16)
	le.PutUint64(p[24:], uint64(headerSize+8*len(w.attr.IDs)))
	le.PutUint64(p[32:], attrSize+16)
	le.PutUint64(p[40:], uint64(w.base))
	le.PutUint64(p[48:], uint64(end-w.base))
	le.PutUint64(p[72:], features)
	_, err := w.f.WriteAt(p[:], 0)
	return err
}

// sections are the features behind the data: a table of places, in the order of their bits, and what stands there.
func (w *Writer) sections() (b []byte, mask uint64) {
	text := func(s string) []byte {
		n := (len(s) + 1 + 63) &^ 63
		p := le.AppendUint32(nil, uint32(n))
		return append(append(p, s...), make([]byte, n-len(s))...)
	}
	cmdline := le.AppendUint32(nil, uint32(len(w.host.Cmdline)))
	for _, a := range w.host.Cmdline {
		cmdline = append(cmdline, text(a)...)
	}
	cpus := uint32(max(w.host.CPUs, 1))
	type section struct {
		bit  int
		data []byte
	}
	list := []section{
		{FeatureHostname, text(w.host.Name)},
		{FeatureOSRelease, text(w.host.Release)},
		{FeatureVersion, text(w.host.Version)},
		{FeatureArch, text(archName())},
		{FeatureCPUs, le.AppendUint32(le.AppendUint32(nil, cpus), cpus)},
		{FeatureCmdline, cmdline},
		{FeatureClockID, le.AppendUint64(nil, 1)}, // nanoseconds
	}
	at := w.end + int64(16*len(list))
	for _, s := range list {
		mask |= 1 << s.bit
		b = le.AppendUint64(b, uint64(at))
		b = le.AppendUint64(b, uint64(len(s.data)))
		at += int64(len(s.data))
	}
	for _, s := range list {
		b = append(b, s.data...)
	}
	return b, mask
}

func archName() string {
	if runtime.GOARCH == "amd64" {
		return "x86_64"
	}
	return runtime.GOARCH
}

// Close flushes. It does not close the file.
func (w *Writer) Close() error { return w.Flush() }

var _ io.Closer = (*Writer)(nil)
