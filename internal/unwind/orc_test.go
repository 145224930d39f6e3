package unwind

import (
	"errors"
	"slices"
	"testing"
)

// A stack is memory from address base on.
type stack []byte

const base = 0xffffc90000000000

var errOutside = errors.New("outside")

func (s stack) ReadAt(p []byte, va uint64) error {
	if va < base || va-base > uint64(len(s)) || uint64(len(p)) > uint64(len(s))-(va-base) {
		return errOutside
	}
	copy(p, s[va-base:])
	return nil
}

func (s stack) put(at int, words ...uint64) {
	for i, w := range words {
		le.PutUint64(s[at+8*i:], w)
	}
}

// A rule is an ORC entry from an address on.
type rule struct {
	ip     uint64
	sp, bp int16
	flags  uint16 // sp_reg, bp_reg, type and further bits
}

const text = 0xffffffff81000000

func tableOf(f *format, rules ...rule) *table {
	t := &table{at: text + 1<<24, format: f}
	for i, r := range rules {
		t.ips = le.AppendUint32(t.ips, uint32(r.ip-t.at-uint64(i)*4))
		t.raw = le.AppendUint16(t.raw, uint16(r.sp))
		t.raw = le.AppendUint16(t.raw, uint16(r.bp))
		t.raw = le.AppendUint16(t.raw, r.flags)
	}
	return t
}

var (
	format61 = &format{registers: &oldRegisters, kinds: &oldKinds, kindBits: 2, endBit: 11, signalBit: 10}
	format73 = &format{registers: &newRegisters, kinds: &newKinds, kindBits: 3, endBit: -1, signalBit: 11}
)

func TestChainThroughCallsFramesAndAnInterrupt(t *testing.T) {
	for _, c := range []struct {
		name                                  string
		f                                     *format
		byCall, byBP, byRegisters, start, sig uint16
	}{
		// sp_reg | bp_reg<<4 | type<<8: SP is 5 and BP 4 in the old, 3 and 4 in the new numbers; the previous SP is 1 and 8.
		{"6.1", format61, 5, 4 | 1<<4, 5 | 1<<8, 1 << 11, 1 << 10},
		{"7.3", format73, 3 | 2<<8, 4 | 8<<4 | 2<<8, 3 | 3<<8, 1 << 8, 1 << 11},
	} {
		const a, b, d, first = text + 0x100, text + 0x200, text + 0x300, text + 0x400
		u := &Kernel{main: tableOf(c.f,
			rule{a, 24, 0, c.byCall},     // a keeps 16 bytes
			rule{b, 16, -16, c.byBP},     // b has a frame pointer, and its caller's saved
			rule{d, 0, 0, c.byRegisters}, // d is an interrupt's entry
			rule{first, 0, 0, c.start})}
		s := make(stack, 4096)
		u.mem = s
		s.put(16, b+9)            // a's return address
		s.put(64, 0x1234, d+5)    // b's frame: the caller's frame pointer, the return address
		s.put(80+ptBP, base+0x99) // struct pt_regs of the interrupt
		s.put(80+ptIP, first)     // exactly where a function begins: no return address
		s.put(80+ptSP, base+0x800)
		st := &state{u: u, ip: a + 7, sp: base, bp: base + 64}
		got, err := st.chain()
		want := []uint64{a + 7, b + 9, d + 5, first}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %#x, %v, want %#x", c.name, got, err, want)
		}
		if st.bp != base+0x99 {
			t.Errorf("%s: the frame pointer is %#x", c.name, st.bp)
		}
	}
}

func TestChainThatCannotBeFollowedEndsInAnError(t *testing.T) {
	u := &Kernel{main: tableOf(format61, rule{text, 8, 0, 5}, rule{text + 0x100, 0, 0, 0}, rule{text + 0x200, -8, 0, 5}), mem: make(stack, 1<<16)}
	for _, c := range []struct {
		what   string
		ip, sp uint64
	}{
		{"an address below the kernel", 0x1000, base}, {"an undefined frame", text + 0x180, base}, {"a stack that grows", text + 0x280, base + 0x100},
		{"a stack that is not there", text + 1, 0x1000},
	} {
		if got, err := (&state{u: u, ip: c.ip, sp: c.sp}).chain(); err == nil {
			t.Errorf("%s: %#x", c.what, got)
		}
	}
}

func FuzzChain(f *testing.F) {
	f.Add([]byte{8, 0, 0, 0, 5, 0}, make([]byte, 64), uint64(text+1), uint64(base))
	f.Fuzz(func(t *testing.T, raw, memory []byte, ip, sp uint64) {
		for _, form := range []*format{format61, format73} {
			var rules []rule
			for i := 0; i+entrySize <= len(raw); i += entrySize {
				rules = append(rules, rule{text + uint64(i), int16(le.Uint16(raw[i:])), int16(le.Uint16(raw[i+2:])), le.Uint16(raw[i+4:])})
			}
			u := &Kernel{main: tableOf(form, rules...), mem: stack(memory)}
			if all, _ := (&state{u: u, ip: ip, sp: sp, bp: sp}).chain(); len(all) > maxFrames {
				t.Errorf("%d frames", len(all))
			}
		}
	})
}
