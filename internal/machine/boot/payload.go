package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/kernel/decompress"
)

// maxUnpacked bounds what a payload may grow to; Linux maps its image into 1 GiB.
const maxUnpacked = 1 << 30

// castagnoli is enough for what it is for, a disk's or a copy's errors: the cache belongs to the user whose kernel it is.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// An unpacked is a decompressed payload: a file without a name, or one of the cache.
type unpacked struct {
	*os.File
	size int64
	sum  uint32
}

// unpack decompresses p, a bzImage's payload, into out, at most limit bytes. It returns decompress.ErrFormat where the form is not known.
func unpack(p *io.SectionReader, out io.Writer, limit int64) (size int64, sum uint32, err error) {
	// All of the kernel's forms are followed by the size of what comes out (scripts/Makefile.lib size_append); gzip's own trailer is it.
	want := int64(-1)
	stream := p.Size()
	var head [9]byte
	if n, _ := p.ReadAt(head[:], 0); n < len(head) {
		return 0, 0, decompress.ErrFormat
	}
	form, ok := decompress.Detect(head[:])
	if !ok {
		return 0, 0, decompress.ErrFormat
	}
	var word [4]byte
	if err := readFull(p, word[:], stream-4); err != nil {
		return 0, 0, err
	}
	if w := int64(binary.LittleEndian.Uint32(word[:])); w >= stream/2 && w <= maxUnpacked {
		want = w
		if form.Name != "gzip" {
			stream -= 4
		}
	}
	if want > limit {
		return 0, 0, fmt.Errorf("the decompressed kernel takes %s, guest memory is smaller", mib(uint64(want)))
	}
	r, err := decompress.NewReader(io.NewSectionReader(p, 0, stream))
	if err != nil {
		return 0, 0, err
	}
	crc := crc32.New(castagnoli)
	size, err = io.Copy(io.MultiWriter(out, crc), io.LimitReader(r, limit+1))
	switch {
	case err != nil:
		return 0, 0, err
	case size > limit:
		return 0, 0, fmt.Errorf("the decompressed kernel takes more than the %s of guest memory", mib(uint64(limit)))
	case want >= 0 && size != want:
		return 0, 0, fmt.Errorf("%s: %d bytes came out, %d are announced", form.Name, size, want)
	}
	return size, crc.Sum32(), nil
}

// unpackAnonymous decompresses into a file that has no name.
func unpackAnonymous(p *io.SectionReader, limit int64) (*unpacked, error) {
	fd, err := unix.MemfdCreate("vitrine-vmlinux", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory for the decompressed kernel: %w", err)
	}
	u := &unpacked{File: os.NewFile(uintptr(fd), "vmlinux")}
	if u.size, u.sum, err = unpack(p, u.File, limit); err != nil {
		u.Close()
		return nil, err
	}
	return u, nil
}

// payload gives the decompressed payload: from the cache, or made, and put into the cache where that is possible.
// id is the identity of the file that p is of.
func (l *loader) payload(p *io.SectionReader, id string) (*unpacked, error) {
	limit := min(int64(maxUnpacked), int64(l.ram.Size()))
	if l.CacheDir == "" {
		return unpackAnonymous(p, limit)
	}
	u, err := cached(l.CacheDir, id, p, limit)
	var ce *cacheError
	if errors.As(err, &ce) {
		l.Log(fmt.Sprintf("cache %s: %v; going on without it", l.CacheDir, ce.err))
		return unpackAnonymous(p, limit)
	}
	return u, err
}
