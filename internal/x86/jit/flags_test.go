package jit

import (
	"testing"

	"vitrine.dev/vitrine/internal/x86/decode"
)

// blockAt makes the block that begins at off of a page with code at its start.
func blockAt(t *testing.T, code []byte, off int) *Block {
	t.Helper()
	b := &Block{Page: make([]byte, 4096)}
	copy(b.Page, code)
	for {
		in, err := decode.Decode(b.Page[off:], decode.Mode64, 0)
		if err != nil {
			t.Fatal(err)
		}
		b.Insts = append(b.Insts, Inst{Inst: in, Off: uint16(off)})
		if off += int(in.Len); in.Flags&(decode.Jump|decode.EndBlock) != 0 {
			return b
		}
	}
}

func TestFlagsThatAreAResultLive(t *testing.T) {
	const nop = 0x90
	for _, c := range []struct {
		what string
		code []byte
		at   int
		want flagSet
	}{
		{"cmp; ret", []byte{nop, 0x39, 0xD8, 0xC3}, 1, allFlags},
		{"add; ret: what it leaves is nobody's", []byte{nop, 0x01, 0xD8, 0xC3}, 1, 0},
		{"pop rbx; ret", []byte{nop, 0x5B, 0xC3}, 1, 0},
		{"ret behind popf", []byte{0x9D, 0xC3}, 1, allFlags},
		{"mov; ret behind popf", []byte{0x9D, 0x89, 0xD8, 0xC3}, 1, allFlags},
		{"jmp to a thunk, behind popf", []byte{0x9D, 0xEB, 0x02, nop, nop, 0xC3}, 1, allFlags},
		{"the thunk", []byte{0x9D, 0xEB, 0x02, nop, nop, 0xC3}, 5, allFlags},
		{"cmp; jmp to a thunk", []byte{nop, 0x39, 0xD8, 0xEB, 0x02, nop, nop, 0xC3}, 1, allFlags},
		{"cmp; je to a ret: they were for je", []byte{nop, 0x39, 0xD8, 0x74, 0x01, 0xC3, 0xC3}, 1, 0},
		{"call; its flags are nobody's", []byte{nop, 0xE8, 0, 0, 0, 0}, 1, 0},
	} {
		tr := &Translator{}
		if got := tr.liveOut(blockAt(t, c.code, c.at)); got != c.want {
			t.Errorf("%s: %#x live behind it, want %#x", c.what, got, c.want)
		}
	}
}
