package dump

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"

	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// A Kernel is what a dump says of the guest's, so that others find their way. A guest.Kernel is one.
type Kernel interface {
	VMCoreInfo() []byte
	Mapping() guest.Mapping
	DirectMap() uint64
}

// Write writes a guest's memory and registers to f, which is empty, as QEMU's dump-guest-memory does: notes for crash, gdb and drgn, then
// RAM; what is zero becomes a hole. Of the kernel k, which may be nil, come VMCOREINFO and at which virtual addresses memory is, as /proc/vmcore has them: its
// image, which lies in RAM that has headers of its own, and all RAM (kernel/crash_core.c, crash_prepare_elf64_headers). drgn finds the page tables by them.
// A guest that runs goes on running: what it changes meanwhile may be in the dump or not.
func Write(f *os.File, t guest.Target, k Kernel) error {
	var info []byte
	var image guest.Mapping
	direct := uint64(0)
	if k != nil {
		info, image, direct = k.VMCoreInfo(), k.Mapping(), k.DirectMap()
	}
	var notes bytes.Buffer
	for i := range t.NumCPU() {
		var r x86.Regs
		if t.CPU(i, &r) != nil {
			continue
		}
		note(&notes, "CORE", 1, encodePRStatus(i, &r))
		note(&notes, "QEMU", 0, encodeQEMU(&r))
	}
	if len(info) > 0 {
		note(&notes, "VMCOREINFO", 0, info)
	}
	regions := t.Regions()
	headers := 1 + len(regions)
	home := slices.IndexFunc(regions, func(r mem.Region) bool {
		return image.Physical >= r.Base && uint64(image.Physical-r.Base) < r.Size && image.Size <= r.Size-uint64(image.Physical-r.Base)
	})
	if home >= 0 && image.Size > 0 {
		headers++
	}
	head := make([]byte, ehdrSize+phdrSize*headers)
	copy(head, "\x7fELF\x02\x01\x01")
	le.PutUint16(head[16:], etCore)
	le.PutUint16(head[18:], emX8664)
	le.PutUint32(head[20:], 1)
	le.PutUint64(head[32:], ehdrSize)
	le.PutUint16(head[52:], ehdrSize)
	le.PutUint16(head[54:], phdrSize)
	le.PutUint16(head[56:], uint16(headers))
	program := func(i int, kind uint32, off, virtual, physical, size uint64) {
		p := head[ehdrSize+i*phdrSize:]
		le.PutUint32(p, kind)
		le.PutUint64(p[8:], off)
		le.PutUint64(p[16:], virtual)
		le.PutUint64(p[24:], physical)
		le.PutUint64(p[32:], size)
		le.PutUint64(p[40:], size)
	}
	program(0, ptNote, uint64(len(head)), 0, 0, uint64(notes.Len()))
	at := (uint64(len(head)+notes.Len()) + mem.PageSize - 1) &^ (mem.PageSize - 1)
	start := at
	for i, r := range regions {
		program(headers-len(regions)+i, ptLoad, at, direct+uint64(r.Base), uint64(r.Base), r.Size)
		if i == home && image.Size > 0 {
			program(1, ptLoad, at+uint64(image.Physical-r.Base), image.Virtual, uint64(image.Physical), image.Size)
		}
		at += r.Size
	}
	if _, err := f.WriteAt(append(head, notes.Bytes()...), 0); err != nil {
		return err
	}
	if err := f.Truncate(int64(at)); err != nil {
		return err
	}
	at = start
	for _, r := range regions {
		if err := writeRegion(f, int64(at), t, r); err != nil {
			return err
		}
		at += r.Size
	}
	return nil
}

func note(w *bytes.Buffer, name string, kind uint32, desc []byte) {
	var b [12]byte
	le.PutUint32(b[:], uint32(len(name)+1))
	le.PutUint32(b[4:], uint32(len(desc)))
	le.PutUint32(b[8:], kind)
	w.Write(b[:])
	for _, p := range [][]byte{append([]byte(name), 0), desc} {
		w.Write(p)
		w.Write(make([]byte, -len(p)&3))
	}
}

// writeRegion copies RAM to the file at off, leaving out what is zero, or known to have never been written.
func writeRegion(f io.WriterAt, off int64, t guest.Target, r mem.Region) error {
	const chunk = 1 << 20
	buf, zero := make([]byte, chunk), make([]byte, mem.PageSize)
	sparse, _ := t.(guest.Sparse)
	end := r.Base + mem.Addr(r.Size)
	for a := r.Base; a < end; {
		n := min(uint64(end-a), chunk)
		if sparse != nil {
			start, size, ok := sparse.NextData(a)
			if !ok || start >= end {
				return nil
			}
			a = max(a, start)
			n = min(uint64(end-a), chunk, max(size, 1))
		}
		if _, err := t.ReadPhys(buf[:n], a); err != nil {
			return fmt.Errorf("memory at %#x: %w", uint64(a), err)
		}
		// Runs of pages that are not zero are written at once.
		for p := uint64(0); p < n; {
			q := p
			for q < n && !bytes.Equal(buf[q:min(q+mem.PageSize, n)], zero[:min(mem.PageSize, n-q)]) {
				q = min(q+mem.PageSize, n)
			}
			if q > p {
				if _, err := f.WriteAt(buf[p:q], off+int64(uint64(a-r.Base)+p)); err != nil {
					return err
				}
			}
			p = max(q, min(p+mem.PageSize, n))
		}
		a += mem.Addr(n)
	}
	return nil
}
