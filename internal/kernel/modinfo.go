package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
)

// A modinfo is what a module's .modinfo section says of its dependencies, as canonical names.
type modinfo struct {
	name      string
	depends   []string // must be loaded before it
	pre, post []string // should be loaded before and after it, where they exist (softdep)
}

var errNotModule = errors.New("not an x86-64 kernel module")

// parseModinfo reads the section, strings of key=value, out of a module's ELF file.
func parseModinfo(p []byte) (*modinfo, error) {
	section, err := elfSection(p, ".modinfo")
	if err != nil {
		return nil, err
	}
	info := &modinfo{}
	for entry := range bytes.SplitSeq(section, []byte{0}) {
		key, value, _ := strings.Cut(string(entry), "=")
		switch key {
		case "name":
			info.name = canonical(value)
		case "depends":
			for d := range strings.SplitSeq(value, ",") {
				if d != "" {
					info.depends = append(info.depends, canonical(d))
				}
			}
		case "softdep":
			list := (*[]string)(nil)
			for w := range strings.FieldsSeq(value) {
				switch {
				case w == "pre:":
					list = &info.pre
				case w == "post:":
					list = &info.post
				case list != nil:
					*list = append(*list, canonical(w))
				}
			}
		}
	}
	return info, nil
}

// elfSection finds a section of a 64-bit relocatable file by its name.
func elfSection(p []byte, name string) ([]byte, error) {
	const machineX86_64, shentSize = 62, 64
	le := binary.LittleEndian
	if len(p) < 64 || string(p[:6]) != "\x7fELF\x02\x01" || le.Uint16(p[18:]) != machineX86_64 {
		return nil, errNotModule
	}
	n := uint64(len(p))
	shoff, shnum, shstr := le.Uint64(p[40:]), uint64(le.Uint16(p[60:])), uint64(le.Uint16(p[62:]))
	if le.Uint16(p[58:]) != shentSize || shoff > n || shnum*shentSize > n-shoff || shstr >= shnum {
		return nil, errNotModule
	}
	content := func(i uint64) ([]byte, bool) {
		h := p[shoff+i*shentSize:]
		off, size := le.Uint64(h[24:]), le.Uint64(h[32:])
		if off > n || size > n-off {
			return nil, false
		}
		return p[off : off+size], true
	}
	names, ok := content(shstr)
	if !ok {
		return nil, errNotModule
	}
	for i := range shnum {
		at := uint64(le.Uint32(p[shoff+i*shentSize:]))
		if at < uint64(len(names)) && bytes.HasPrefix(names[at:], []byte(name+"\x00")) {
			if s, ok := content(i); ok {
				return s, nil
			}
		}
	}
	return nil, errNotModule
}
