package blk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/machine/virtio/virtiotest"
)

const sectors = 64

// image makes a disk whose sector n is full of byte n.
func image(t testing.TB, size int) string {
	t.Helper()
	var b []byte
	for n := 0; len(b) < size; n++ {
		b = append(b, bytes.Repeat([]byte{byte(n)}, SectorSize)...)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, b[:size], 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string, readOnly bool) Disk {
	t.Helper()
	disk, err := OpenRaw(path, readOnly)
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

func start(t testing.TB, disk Disk, features uint64) *virtiotest.Driver {
	t.Helper()
	return virtiotest.New(t, New(disk, 2, "vitrine-0")).Start(features, 0)
}

const all = ^uint64(0)

func header(kind uint32, sector uint64) []byte {
	return le.AppendUint64(le.AppendUint64(nil, uint64(kind)), sector)
}

// status is the request's last byte, data the others.
func status(r *virtiotest.Request) byte { b := r.Bytes(); return b[len(b)-1] }
func data(r *virtiotest.Request) []byte { b := r.Bytes(); return b[:len(b)-1] }

func TestReadAndWrite(t *testing.T) {
	path := image(t, sectors*SectorSize)
	d := start(t, open(t, path, false), all)
	for i, q := range d.Queues {
		r := q.Do([][]byte{header(typeIn, 3)}, SectorSize, 2*SectorSize, 1)
		want := bytes.Repeat([]byte{3}, SectorSize)
		want = append(want, bytes.Repeat([]byte{4}, SectorSize)...)
		want = append(want, bytes.Repeat([]byte{5}, SectorSize)...)
		if status(r) != statusOK || r.Len != len(want)+1 || !bytes.Equal(data(r), want) {
			t.Errorf("queue %d: read status %d, length %d", i, status(r), r.Len)
		}
	}
	q := d.Queues[1]
	q.UseIndirect = true
	w := bytes.Repeat([]byte{0xAB}, 2*SectorSize)
	if r := q.Do([][]byte{header(typeOut, 62), w[:700], w[700:]}, 1); status(r) != statusOK || r.Len != 1 {
		t.Errorf("write: status %d, length %d", status(r), r.Len)
	}
	if r := q.Do([][]byte{header(typeFlush, 0)}, 1); status(r) != statusOK {
		t.Errorf("flush: status %d", status(r))
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(file[62*SectorSize:], w) || file[62*SectorSize-1] != 61 {
		t.Error("the file does not hold what was written, or more was")
	}
}

func TestStatusSharesTheLastBuffer(t *testing.T) {
	d := start(t, open(t, image(t, sectors*SectorSize), false), 0)
	r := d.Queues[0].Do([][]byte{header(typeIn, 1)[:7], header(typeIn, 1)[7:]}, SectorSize+1)
	if status(r) != statusOK || !bytes.Equal(data(r), bytes.Repeat([]byte{1}, SectorSize)) {
		t.Errorf("status %d", status(r))
	}
}

func TestGetID(t *testing.T) {
	d := start(t, open(t, image(t, sectors*SectorSize), true), all)
	r := d.Queues[0].Do([][]byte{header(typeGetID, 0)}, idSize, 1)
	if got := string(bytes.TrimRight(data(r), "\x00")); status(r) != statusOK || got != "vitrine-0" {
		t.Errorf("status %d, id %q", status(r), got)
	}
}

func ranges(v ...uint64) (p []byte) {
	for i := 0; i < len(v); i += 3 {
		p = le.AppendUint64(p, v[i])
		p = le.AppendUint32(p, uint32(v[i+1]))
		p = le.AppendUint32(p, uint32(v[i+2]))
	}
	return p
}

func TestDiscardAndWriteZeroes(t *testing.T) {
	for _, c := range []struct {
		name string
		kind uint32
		flag uint64
	}{{"discard", typeDiscard, 0}, {"write zeroes", typeWriteZeroes, 0}, {"write zeroes, unmap", typeWriteZeroes, flagUnmap}} {
		t.Run(c.name, func(t *testing.T) {
			path := image(t, sectors*SectorSize)
			d := start(t, open(t, path, false), all)
			r := d.Queues[0].Do([][]byte{header(c.kind, 0), ranges(8, 8, c.flag, 32, 1, c.flag)}, 1)
			if status(r) != statusOK {
				t.Fatalf("status %d", status(r))
			}
			file, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if len(file) != sectors*SectorSize || file[7*SectorSize] != 7 || file[16*SectorSize] != 16 || file[33*SectorSize] != 33 {
				t.Error("other sectors changed")
			}
			if c.kind == typeWriteZeroes && (!bytes.Equal(file[8*SectorSize:16*SectorSize], make([]byte, 8*SectorSize)) || file[32*SectorSize] != 0) {
				t.Error("the sectors are not zero")
			}
		})
	}
}

func TestBadRequestsAreAnswered(t *testing.T) {
	rw := start(t, open(t, image(t, sectors*SectorSize), false), all)
	ro := start(t, open(t, image(t, sectors*SectorSize), true), all)
	sector := make([]byte, SectorSize)
	for _, c := range []struct {
		name string
		d    *virtiotest.Driver
		out  [][]byte
		in   []int
		want byte
	}{
		{"read past the end", rw, [][]byte{header(typeIn, sectors-1)}, []int{2 * SectorSize, 1}, statusIOErr},
		{"read far away", rw, [][]byte{header(typeIn, 1<<63)}, []int{SectorSize, 1}, statusIOErr},
		{"sector times 512 wraps", rw, [][]byte{header(typeIn, 1<<55)}, []int{SectorSize, 1}, statusIOErr},
		{"half a sector", rw, [][]byte{header(typeIn, 0)}, []int{256, 1}, statusIOErr},
		{"write past the end", rw, [][]byte{header(typeOut, sectors), sector}, []int{1}, statusIOErr},
		{"short header", rw, [][]byte{header(typeIn, 0)[:15]}, []int{1}, statusIOErr},
		{"no header", rw, nil, []int{SectorSize, 1}, statusIOErr},
		{"unknown type", rw, [][]byte{header(99, 0)}, []int{1}, statusUnsupp},
		{"write to a read-only disk", ro, [][]byte{header(typeOut, 0), sector}, []int{1}, statusIOErr},
		{"discard on a read-only disk", ro, [][]byte{header(typeDiscard, 0), ranges(0, 1, 0)}, []int{1}, statusIOErr},
		{"discard past the end", rw, [][]byte{header(typeDiscard, 0), ranges(0, 1, 0, sectors, 1, 0)}, []int{1}, statusIOErr},
		{"discard with unmap", rw, [][]byte{header(typeDiscard, 0), ranges(0, 1, 1)}, []int{1}, statusUnsupp},
		{"zeroes with unknown flags", rw, [][]byte{header(typeWriteZeroes, 0), ranges(0, 1, 2)}, []int{1}, statusUnsupp},
		{"half a range", rw, [][]byte{header(typeWriteZeroes, 0), ranges(0, 1, 0)[:9]}, []int{1}, statusIOErr},
		{"too many ranges", rw, [][]byte{header(typeWriteZeroes, 0), make([]byte, 17*rangeSize)}, []int{1}, statusIOErr},
	} {
		if r := c.d.Queues[0].Do(c.out, c.in...); status(r) != c.want {
			t.Errorf("%s: status %d, want %d", c.name, status(r), c.want)
		}
	}
	if r := rw.Queues[0].Do([][]byte{header(typeOut, 0), sector}); r.Len != 0 {
		t.Errorf("without room for a status: length %d", r.Len)
	}
	if st := rw.Status() | ro.Status(); st&virtio.StatusNeedsReset != 0 {
		t.Error("a bad request broke a device")
	}
}

func TestOddSizedFileEndsInZeros(t *testing.T) {
	path := image(t, 3*SectorSize-100)
	d := start(t, open(t, path, false), all)
	if n := d.Read(d.Config, 8); n != 3 {
		t.Fatalf("capacity %d, want 3", n)
	}
	r := d.Queues[0].Do([][]byte{header(typeIn, 2)}, SectorSize, 1)
	want := append(bytes.Repeat([]byte{2}, SectorSize-100), make([]byte, 100)...)
	if status(r) != statusOK || !bytes.Equal(data(r), want) {
		t.Errorf("status %d", status(r))
	}
}

func TestOpenRefusesWhatIsNoDisk(t *testing.T) {
	for _, path := range []string{t.TempDir(), "/dev/null", image(t, 0), "/does/not/exist"} {
		if disk, err := OpenRaw(path, true); err == nil {
			disk.Close()
			t.Errorf("%s opened", path)
		}
	}
}

// counting is a disk in memory that counts flushes and may fail.
type counting struct {
	Disk
	flushes *atomic.Int32
	fail    error
}

func (c *counting) Flush() error { c.flushes.Add(1); return c.fail }
func (c *counting) ReadAt(bufs [][]byte, off int64) error {
	if c.fail != nil {
		return c.fail
	}
	return c.Disk.ReadAt(bufs, off)
}

func TestWriteThroughFlushesEachWrite(t *testing.T) {
	write := [][]byte{header(typeOut, 0), make([]byte, SectorSize)}
	for _, c := range []struct {
		name     string
		features uint64
		writeWCE bool
		want     int32
	}{
		{"write-back", all, false, 0},
		{"the driver chose write-through", all, true, 1},
		{"a driver without flush", all &^ FeatureFlush, false, 1},
	} {
		var flushes atomic.Int32
		disk := func() Disk { return &counting{Disk: open(t, image(t, sectors*SectorSize), false), flushes: &flushes} }
		d := start(t, disk(), c.features)
		if c.writeWCE {
			d.Write(d.Config+cfgWriteback, 1, 0)
			d = d.Migrate(New(disk(), 2, "")) // the choice is carried over
		}
		d.Queues[0].Do(write, 1)
		if n := flushes.Load(); n != c.want {
			t.Errorf("%s: %d flushes, want %d", c.name, n, c.want)
		}
	}
}

func TestHostErrorsReachTheGuest(t *testing.T) {
	disk := &counting{Disk: open(t, image(t, sectors*SectorSize), false), flushes: new(atomic.Int32), fail: errors.New("bad disk")}
	d := start(t, disk, all)
	for _, kind := range []uint32{typeIn, typeFlush} {
		if r := d.Queues[0].Do([][]byte{header(kind, 0)}, SectorSize, 1); status(r) != statusIOErr {
			t.Errorf("type %d: status %d", kind, status(r))
		}
	}
}

func TestManyRequestsOnAllQueues(t *testing.T) {
	d := start(t, open(t, image(t, sectors*SectorSize), false), all)
	var rs []*virtiotest.Request
	for i := range 50 {
		for _, q := range d.Queues {
			rs = append(rs, q.Add([][]byte{header(typeIn, uint64(i))}, SectorSize, 1))
		}
	}
	for i, r := range rs {
		d.Queues[i%2].Wait(r)
		if status(r) != statusOK || data(r)[SectorSize-1] != byte(i/2) {
			t.Errorf("request %d: status %d, byte %d", i, status(r), data(r)[0])
		}
	}
}

func FuzzDriver(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 4, 17, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2})
	path := image(f, sectors*SectorSize)
	f.Fuzz(func(t *testing.T, in []byte) {
		virtiotest.Garbage(t, New(open(t, path, false), 2, ""), in)
	})
}
