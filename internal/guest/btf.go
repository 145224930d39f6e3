package guest

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// BTF is a kernel's description of its own types (Documentation/bpf/btf.rst). Only places are kept: a type is read when asked for.
type BTF struct {
	types, strings []byte
	at             []uint32       // offset of type id in types; id 0 is void
	structs        map[string]int // id of the largest struct or union of a name
}

// The kinds of types (include/uapi/linux/btf.h).
const (
	kindInt = 1 + iota
	kindPtr
	kindArray
	kindStruct
	kindUnion
	kindEnum
	kindFwd
	kindTypedef
	kindVolatile
	kindConst
	kindRestrict
	kindFunc
	kindFuncProto
	kindVar
	kindDatasec
	kindFloat
	kindDeclTag
	kindTypeTag
	kindEnum64
)

// extra is what follows a type's 12 bytes: a fixed part, and one for each of vlen members.
var extra = [...]struct{ fixed, each int }{
	kindInt: {4, 0}, kindPtr: {}, kindArray: {12, 0}, kindStruct: {0, 12}, kindUnion: {0, 12}, kindEnum: {0, 8}, kindFwd: {},
	kindTypedef: {}, kindVolatile: {}, kindConst: {}, kindRestrict: {}, kindFunc: {}, kindFuncProto: {0, 8}, kindVar: {4, 0},
	kindDatasec: {0, 12}, kindFloat: {}, kindDeclTag: {4, 0}, kindTypeTag: {}, kindEnum64: {0, 12},
}

var errBTF = errors.New("guest: BTF is damaged")

// ParseBTF reads the header and finds the types of a raw BTF section.
func ParseBTF(b []byte) (*BTF, error) {
	if len(b) < 24 || le.Uint16(b) != 0xEB9F {
		return nil, errBTF
	}
	head := uint64(le.Uint32(b[4:]))
	part := func(at int) []byte {
		off, n := head+uint64(le.Uint32(b[at:])), uint64(le.Uint32(b[at+4:]))
		if off > uint64(len(b)) || n > uint64(len(b))-off {
			return nil
		}
		return b[off : off+n]
	}
	t := &BTF{types: part(8), strings: part(16), at: make([]uint32, 1, len(b)/40), structs: map[string]int{}}
	if t.types == nil || t.strings == nil {
		return nil, errBTF
	}
	for off := 0; off < len(t.types); {
		if len(t.types)-off < 12 {
			return nil, errBTF
		}
		info := le.Uint32(t.types[off+4:])
		kind, vlen := int(info>>24&31), int(info&0xFFFF)
		if kind == 0 || kind >= len(extra) {
			return nil, fmt.Errorf("%w: type %d is of unknown kind %d", errBTF, len(t.at), kind)
		}
		size := 12 + extra[kind].fixed + vlen*extra[kind].each
		if size > len(t.types)-off {
			return nil, errBTF
		}
		id := len(t.at)
		t.at = append(t.at, uint32(off))
		if kind == kindStruct || kind == kindUnion {
			if name := t.name(le.Uint32(t.types[off:])); name != "" {
				if old, ok := t.structs[name]; !ok || t.size(old) < t.size(id) {
					t.structs[name] = id
				}
			}
		}
		off += size
	}
	return t, nil
}

func (t *BTF) name(off uint32) string {
	if uint64(off) >= uint64(len(t.strings)) {
		return ""
	}
	s := t.strings[off:]
	if n := bytes.IndexByte(s[:min(len(s), 512)], 0); n >= 0 {
		return string(s[:n])
	}
	return ""
}

func (t *BTF) size(id int) uint32 { return le.Uint32(t.types[t.at[id]+8:]) }

// resolve follows typedefs and qualifiers.
func (t *BTF) resolve(id int) (kind, real int) {
	for range 32 {
		if id <= 0 || id >= len(t.at) {
			return 0, 0
		}
		kind = int(le.Uint32(t.types[t.at[id]+4:]) >> 24 & 31)
		switch kind {
		case kindTypedef, kindVolatile, kindConst, kindRestrict, kindTypeTag:
			id = int(t.size(id))
		default:
			return kind, id
		}
	}
	return 0, 0
}

// Sizeof is the size of a struct or union in bytes.
func (t *BTF) Sizeof(name string) (uint64, error) {
	id, ok := t.structs[name]
	if !ok {
		return 0, fmt.Errorf("guest: no struct %s", name)
	}
	return uint64(t.size(id)), nil
}

// A Field is where a member of a struct is.
type Field struct {
	Off  uint64 // bytes from the struct's start
	Size uint64 // in bytes; of a bit-field the size of its type
	Bit  uint8  // of a bit-field: its lowest bit in the Size bytes at Off
	Bits uint8  // of a bit-field: how many; else 0
	Elem uint64 // of an array: the size of an element; else 0
	Ptr  bool   // a pointer
}

// Offset is the place of a field in struct name, in bytes; path is as for Field.
func (t *BTF) Offset(name, path string) (uint64, error) {
	f, err := t.Field(name, path)
	return f.Off, err
}

// Field finds a field of struct name. path may go into nested structs: "kallsyms.symtab"; members of anonymous ones need no
// name; an element of an array is "mem[0]".
func (t *BTF) Field(name, path string) (Field, error) {
	id, ok := t.structs[name]
	if !ok {
		return Field{}, fmt.Errorf("guest: no struct %s", name)
	}
	var f Field
	for part := range strings.SplitSeq(path, ".") {
		part, index, isArray := strings.Cut(part, "[")
		off, bits, member, ok := t.member(id, part, 0)
		if !ok {
			return Field{}, fmt.Errorf("guest: struct %s has no %s", name, path)
		}
		kind, real := t.resolve(member)
		if isArray {
			n, err := strconv.ParseUint(strings.TrimSuffix(index, "]"), 10, 16)
			if kind != kindArray || err != nil {
				return Field{}, fmt.Errorf("guest: %s of struct %s is not an array", part, name)
			}
			elem, _ := t.sizeof(t.element(real), 0)
			off += n * elem * 8
			_, real = t.resolve(t.element(real))
		}
		// off is in bits.
		f.Off += off / 8
		f.Bit, f.Bits = 0, bits
		id = real
		f.Size, f.Elem = t.sizeof(real, 0)
		if bits != 0 && f.Size > 0 && f.Size <= 8 {
			// The bits lie within one aligned unit of the field's type, as C compilers place them.
			f.Bit = uint8(f.Off%f.Size*8 + off%8)
			f.Off -= f.Off % f.Size
		}
		kind, _ = t.resolve(real)
		f.Ptr = kind == kindPtr
	}
	return f, nil
}

func (t *BTF) element(array int) int { return int(le.Uint32(t.types[t.at[array]+12:])) }

// sizeof is the size of a type in bytes, and of an array's element; 0 for what has none, or more than 1 GiB.
func (t *BTF) sizeof(id, depth int) (size, elem uint64) {
	kind, real := t.resolve(id)
	switch kind {
	case kindInt, kindStruct, kindUnion, kindEnum, kindFloat, kindEnum64:
		return uint64(t.size(real)), 0
	case kindPtr:
		return 8, 0
	case kindArray:
		if depth > 8 {
			return 0, 0
		}
		elem, _ := t.sizeof(t.element(real), depth+1)
		n := uint64(le.Uint32(t.types[t.at[real]+20:]))
		if elem > 1<<30 || n*elem > 1<<30 {
			return 0, 0
		}
		return n * elem, elem
	}
	return 0, 0
}

// member finds a member of struct or union id, also inside of anonymous ones. off is in bits; bits is not 0 for a bit-field.
func (t *BTF) member(id int, field string, depth int) (off uint64, bits uint8, typ int, ok bool) {
	kind, id := t.resolve(id)
	if kind != kindStruct && kind != kindUnion || depth > 16 {
		return 0, 0, 0, false
	}
	head := t.at[id]
	info := le.Uint32(t.types[head+4:])
	for i := range info & 0xFFFF {
		m := t.types[head+12+i*12:]
		bit := uint64(le.Uint32(m[8:]))
		bits := uint8(0)
		if info>>31 != 0 { // kind_flag: bit-field size in the upper byte
			bit, bits = bit&0xFFFFFF, uint8(bit>>24)
		}
		switch t.name(le.Uint32(m)) {
		case field:
			return bit, bits, int(le.Uint32(m[4:])), true
		case "":
			if off, bits, typ, ok := t.member(int(le.Uint32(m[4:])), field, depth+1); ok {
				return bit + off, bits, typ, true
			}
		}
	}
	return 0, 0, 0, false
}
