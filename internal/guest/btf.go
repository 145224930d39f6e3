package guest

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// BTF is a kernel's or a module's description of its own types (Documentation/bpf/btf.rst). Only places are kept: a type is read when asked for.
type BTF struct {
	types, strings []byte
	base           *BTF   // of a module's: the kernel's, whose types and strings come first
	at             []byte // 4 bytes each: offset of type id in types; id 0 is void
	structs        []byte // hash table of ids: the largest struct or union of a name
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

// ParseBTF reads the header and finds the types of a raw BTF section; of a module's, base is its kernel's, else nil. The BTF keeps b.
func ParseBTF(b []byte, base *BTF) (*BTF, error) {
	t, err := openBTF(b, base)
	if err == nil {
		err = t.index()
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

// openBTF reads the header alone.
func openBTF(b []byte, base *BTF) (*BTF, error) {
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
	t := &BTF{types: part(8), strings: part(16), base: base}
	if t.types == nil || t.strings == nil {
		return nil, errBTF
	}
	return t, nil
}

// typeSize is how many bytes describe the type whose first 12 are at b; 0 where its kind is not known.
func typeSize(b []byte) int {
	info := le.Uint32(b[4:])
	kind := int(info >> 24 & 31)
	if kind == 0 || kind >= len(extra) {
		return 0
	}
	return 12 + extra[kind].fixed + int(info&0xFFFF)*extra[kind].each
}

// index finds the types.
func (t *BTF) index() error {
	t.at = make([]byte, 4, len(t.types)/8)
	var named []uint32
	for off := 0; off < len(t.types); {
		if len(t.types)-off < 12 {
			return errBTF
		}
		kind, size := int(le.Uint32(t.types[off+4:])>>24&31), typeSize(t.types[off:])
		if size == 0 {
			return fmt.Errorf("%w: type %d is of unknown kind %d", errBTF, len(t.at)/4, kind)
		}
		if size > len(t.types)-off {
			return errBTF
		}
		if (kind == kindStruct || kind == kindUnion) && le.Uint32(t.types[off:]) != 0 {
			named = append(named, uint32(len(t.at)/4))
		}
		t.at = le.AppendUint32(t.at, uint32(off))
		off += size
	}
	t.structs = t.indexStructs(named)
	return nil
}

// indexStructs makes structs of the ids of those that have names.
func (t *BTF) indexStructs(ids []uint32) []byte {
	b := hashIndex(len(ids), func(i int) []byte { return t.nameOf(t.first() + int(ids[i])) }, func(old, new int) bool {
		return t.size(t.first()+int(ids[old])) >= t.size(t.first()+int(ids[new]))
	})
	for p := 0; p < len(b); p += 4 {
		if i := le.Uint32(b[p:]); i != 0 {
			le.PutUint32(b[p:], ids[i-1]+1)
		}
	}
	return b
}

// first is the id that t's own types are counted from.
func (t *BTF) first() int {
	if t.base == nil {
		return 0
	}
	return len(t.base.at)/4 - 1 // t.at begins with a place for void, which is the base's
}

// Len is how many types there are, void and a module's base among them.
func (t *BTF) Len() int { return t.first() + len(t.at)/4 }

// raw is what describes a type: at least 12 bytes and what its kind has behind them; nil of void and what there is not.
func (t *BTF) raw(id int) []byte {
	if t.base != nil && id <= t.first() {
		return t.base.raw(id)
	}
	i := id - t.first()
	if i <= 0 || i >= len(t.at)/4 {
		return nil
	}
	off := le.Uint32(t.at[4*i:])
	if uint64(off)+12 <= uint64(len(t.types)) {
		if n := typeSize(t.types[off:]); n > 0 && n <= len(t.types)-int(off) {
			return t.types[off:]
		}
	}
	return nil // only in a damaged file
}

func (t *BTF) name(off uint32) []byte {
	s := t.strings
	if t.base != nil {
		if n := uint32(len(t.base.strings)); off < n {
			s = t.base.strings
		} else {
			off -= n
		}
	}
	if uint64(off) >= uint64(len(s)) {
		return nil
	}
	s = s[off:]
	if n := bytes.IndexByte(s[:min(len(s), 512)], 0); n >= 0 {
		return s[:n]
	}
	return nil
}

func (t *BTF) nameOf(id int) []byte {
	if r := t.raw(id); r != nil {
		return t.name(le.Uint32(r))
	}
	return nil
}

// find gives the id of a struct or union.
func (t *BTF) find(name string) (int, bool) {
	i, ok := hashLookup(t.structs, len(t.at)/4, name, func(i int) []byte { return t.nameOf(t.first() + i) })
	if !ok && t.base != nil {
		return t.base.find(name)
	}
	return t.first() + i, ok
}

func (t *BTF) size(id int) uint32 {
	if r := t.raw(id); r != nil {
		return le.Uint32(r[8:])
	}
	return 0
}

// resolve follows typedefs and qualifiers.
func (t *BTF) resolve(id int) (kind, real int) {
	for range 32 {
		r := t.raw(id)
		if r == nil {
			return 0, 0
		}
		kind = int(le.Uint32(r[4:]) >> 24 & 31)
		switch kind {
		case kindTypedef, kindVolatile, kindConst, kindRestrict, kindTypeTag:
			id = int(t.size(id))
		default:
			return kind, id
		}
	}
	return 0, 0
}

// Enum gives the values of an enumeration of 32 bits by name; nil where there is none of that name.
func (t *BTF) Enum(name string) map[string]int64 {
	for id := 1; id < t.Len(); id++ {
		r := t.raw(id)
		if r == nil || le.Uint32(r[4:])>>24&31 != kindEnum || string(t.name(le.Uint32(r))) != name {
			continue
		}
		values := map[string]int64{}
		for i := range le.Uint32(r[4:]) & 0xFFFF {
			e := r[12+8*i:]
			values[string(t.name(le.Uint32(e)))] = int64(int32(le.Uint32(e[4:])))
		}
		return values
	}
	return nil
}

// Sizeof is the size of a struct or union in bytes.
func (t *BTF) Sizeof(name string) (uint64, error) {
	id, ok := t.find(name)
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
	id, ok := t.find(name)
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

func (t *BTF) element(array int) int { return int(le.Uint32(t.raw(array)[12:])) }

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
		n := uint64(le.Uint32(t.raw(real)[20:]))
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
	r := t.raw(id)
	info := le.Uint32(r[4:])
	for i := range info & 0xFFFF {
		m := r[12+i*12:]
		bit := uint64(le.Uint32(m[8:]))
		bits := uint8(0)
		if info>>31 != 0 { // kind_flag: bit-field size in the upper byte
			bit, bits = bit&0xFFFFFF, uint8(bit>>24)
		}
		name := t.name(le.Uint32(m))
		switch {
		case string(name) == field:
			return bit, bits, int(le.Uint32(m[4:])), true
		case len(name) == 0:
			if off, bits, typ, ok := t.member(int(le.Uint32(m[4:])), field, depth+1); ok {
				return bit + off, bits, typ, true
			}
		}
	}
	return 0, 0, 0, false
}
