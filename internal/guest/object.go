package guest

import (
	"bytes"
	"errors"
	"fmt"

	"vitrine.dev/vitrine/internal/printable"
)

// errNoBTF is for what needs the kernel's structures where they are not known.
var errNoBTF = errors.New("guest: the kernel has no BTF: its structures are not known")

// maxStruct bounds a structure in bytes: today's largest that are read here, task_struct and struct pglist_data, are far below.
const maxStruct = 1 << 20

// A structure is a C structure of the kernel and its fields, looked up once.
type structure struct {
	name   string
	size   uint64
	btf    *BTF
	fields map[string]*Field // nil: there is no such field
}

// structure gives the structure of a name, of size 0 where it is not known.
func (k *Kernel) structure(name string) *structure {
	if s, ok := k.structs[name]; ok {
		return s
	}
	s := &structure{name: name, btf: k.BTF(), fields: map[string]*Field{}}
	if s.btf != nil {
		s.size, _ = s.btf.Sizeof(name)
	}
	if s.size > maxStruct {
		s.size = 0
	}
	k.structs[name] = s
	return s
}

// field finds a field by the first of paths that there is: kernels have moved and renamed many.
func (s *structure) field(paths ...string) (Field, bool) {
	for _, path := range paths {
		f, ok := s.fields[path]
		if !ok {
			if s.btf != nil && s.size > 0 {
				if b, err := s.btf.Field(s.name, path); err == nil && b.Off <= s.size && b.Size <= s.size-b.Off { // at the very end: an array without a size
					f = &b
				}
			}
			s.fields[path] = f
		}
		if f != nil {
			return *f, true
		}
	}
	return Field{}, false
}

// An object is a structure as it was in memory at one moment: its fields agree with each other but for what was being written.
type object struct {
	*structure
	addr uint64
	raw  []byte
}

// load reads a structure.
func (k *Kernel) load(name string, addr uint64) (object, error) {
	s := k.structure(name)
	if s.size == 0 {
		if s.btf == nil {
			return object{structure: s}, errNoBTF
		}
		return object{structure: s}, fmt.Errorf("guest: the kernel has no struct %s", name)
	}
	if addr < kernelHalf {
		return object{structure: s}, fmt.Errorf("guest: struct %s at %#x: not an address of the kernel's", name, addr)
	}
	o := object{s, addr, make([]byte, s.size)}
	if err := k.space.ReadAt(o.raw, addr); err != nil {
		return object{structure: s}, fmt.Errorf("guest: struct %s: %w", name, err)
	}
	return o, nil
}

// loadIn is load of a structure that may be known to a module alone: what it is made of is then in the module's own BTF (36e68442d1af, v5.11).
func (k *Kernel) loadIn(module, name string, addr uint64) (object, error) {
	if k.structure(name).size == 0 {
		if t := k.moduleBTF(module); t != nil {
			s := &structure{name: name, btf: t, fields: map[string]*Field{}}
			s.size, _ = t.Sizeof(name)
			if s.size > maxStruct {
				s.size = 0
			}
			k.structs[name] = s
		}
	}
	return k.load(name, addr)
}

// kernelHalf is where the kernel's addresses begin, with five levels of page tables; with four, at ffff800000000000.
const kernelHalf = 0xff00_0000_0000_0000

// has tells whether there is a field.
func (o object) has(path string) bool {
	_, ok := o.field(path)
	return ok
}

// uint is a field's value: an integer, pointer or bit-field of up to 8 bytes. 0 where there is none of the paths.
func (o object) uint(paths ...string) uint64 {
	f, ok := o.field(paths...)
	if !ok || f.Off+min(f.Size, 8) > uint64(len(o.raw)) {
		return 0
	}
	var b [8]byte
	copy(b[:], o.raw[f.Off:f.Off+min(f.Size, 8)])
	v := le.Uint64(b[:])
	if f.Bits != 0 {
		v = v >> f.Bit & (1<<f.Bits - 1)
	}
	return v
}

// int is the same of a signed field of 4 or 8 bytes.
func (o object) int(paths ...string) int64 {
	if f, _ := o.field(paths...); f.Size == 4 {
		return int64(int32(o.uint(paths...)))
	}
	return int64(o.uint(paths...))
}

// bytes are n of a field's; zeros where there are not as many.
func (o object) bytes(path string, n uint64) []byte {
	f, ok := o.field(path)
	if !ok || f.Size < n || f.Off+n > uint64(len(o.raw)) {
		return make([]byte, n)
	}
	return o.raw[f.Off : f.Off+n]
}

// text is an array of characters up to its NUL, printable.
func (o object) text(path string) string {
	f, ok := o.field(path)
	if !ok || f.Off+f.Size > uint64(len(o.raw)) {
		return ""
	}
	b := o.raw[f.Off : f.Off+f.Size]
	if n := bytes.IndexByte(b, 0); n >= 0 {
		b = b[:n]
	}
	return printable.Text(string(b))
}

// at is the address of a field, and 0 where it is not there.
func (o object) at(paths ...string) uint64 {
	f, ok := o.field(paths...)
	if !ok || len(o.raw) == 0 {
		return 0
	}
	return o.addr + f.Off
}

// pointed is the string that a field points to, printable.
func (k *Kernel) pointed(o object, limit int, paths ...string) string {
	p := o.uint(paths...)
	if p < kernelHalf {
		return ""
	}
	s, err := k.space.CString(p, limit)
	if err != nil {
		return ""
	}
	return printable.Text(s)
}
