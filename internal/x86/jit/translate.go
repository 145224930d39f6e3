// Package jit translates blocks of 64-bit guest code to code for the host, which is a processor of the same kind: most instructions are encoded again,
// with other registers, and accesses to memory go through a software TLB.
//
// It knows neither what a processor's state is nor where code comes from: a [Layout] says where the state has what translated code uses, and whatever
// an instruction does besides registers and plain memory is left to the interpreter, which code comes back to for one instruction ([Step]).
// At every instruction boundary the guest's registers and flags are where the others expect them, so code can be left and entered at each.
package jit

import (
	"vitrine.dev/vitrine/internal/x86/decode"
)

// An Inst is an instruction of a block.
type Inst struct {
	decode.Inst
	Off uint16 // of its first byte in the page
}

// A Block is what is translated: instructions of one page that are entered at the first.
type Block struct {
	Insts []Inst
	Page  []byte // the page's bytes, as they are now
	ID    uint32 // what Frame.Block will say
}

// A Mark says that the code of the instruction at page offset Guest begins at Host bytes from the block's.
type Mark struct {
	Guest uint16
	Host  uint32
}

// A Link is a jump to another block of the same page: the place of its 32-bit displacement, and where it leads while the other block is not known,
// both as offsets from the block's code. At is 0 where there is none.
type Link struct{ At, Stub uint32 }

// A Code is a translated block. It is the Translator's, and valid until the next.
type Code struct {
	Bytes []byte
	Marks []Mark
	Links [2]Link // as Fall and Taken: 0 straight on, 1 taken
	Dead  uint32  // offset of an exit for Dead
	Vec   bool    // it has vector instructions
}

// A Translator makes code for one processor.
type Translator struct {
	asm
	layout   *Layout
	exact    bool
	vec      VecUse
	features decode.Features
	exit     uintptr // the common exit
	live     []flagSet
	liveIn   flagSet
	handed   flagSet // what the block leaves for who is behind a RET
	stubs    []stub
	code     Code
	host     hostFeatures
}

// A stub is an exit out of line.
type stub struct {
	from    fixup
	word    uint32
	restore bool // flags are in AX
}

// NewTranslator makes a Translator for processors of this layout. exact: flags are right at every instruction boundary; else those that no instruction
// reads before they are written again may be anything, which only an interrupt or a fault can show.
func NewTranslator(l *Layout, f decode.Features, exact bool) *Translator {
	return &Translator{exact: exact, layout: l, features: f, exit: stubs.exit, host: host()}
}

// Use says which vector instructions code may have from now on.
func (t *Translator) Use(v VecUse) { t.vec = v }

// Translate makes code of b that is to run at address base.
func (t *Translator) Translate(b *Block, base uintptr) *Code {
	t.buf, t.base = t.buf[:0], base
	t.stubs = t.stubs[:0]
	t.code = Code{Marks: t.code.Marks[:0]}
	if cap(t.live) < len(b.Insts) {
		t.live = make([]flagSet, len(b.Insts))
	}
	t.live = t.live[:len(b.Insts)]
	t.liveAfter(b)
	for i := range b.Insts {
		in := &b.Insts[i]
		t.code.Marks = append(t.code.Marks, Mark{in.Off, uint32(t.pos())})
		start, stubs := t.pos(), len(t.stubs)
		do := t.instruction
		if in.Flags&decode.Jump != 0 {
			do = t.branch
		}
		if !do(b, i) {
			t.buf, t.stubs = t.buf[:start], t.stubs[:stubs]
			t.leave(join(Step, in.Off))
		}
	}
	last := &b.Insts[len(b.Insts)-1]
	if last.Flags&(decode.Jump|decode.EndBlock) == 0 {
		t.goTo(0, b, int(last.Off)+int(last.Len), t.liveOut(b) != 0)
	}
	t.finish(b)
	return &t.code
}

// leave appends an exit.
func (t *Translator) leave(word uint32) { t.stubs = append(t.stubs, stub{from: t.jmp(), word: word}) }

// stub makes f lead to an exit.
func (t *Translator) stub(f fixup, word uint32, restore bool) {
	t.stubs = append(t.stubs, stub{f, word, restore})
}

// finish appends the stubs, and what they have in common: the block's number.
func (t *Translator) finish(b *Block) {
	t.code.Dead = uint32(t.pos())
	t.mov32(t0, join(Dead, b.Insts[0].Off))
	var tails []fixup
	if len(t.stubs) > 0 {
		tails = append(tails, t.jmp())
	}
	if len(t.stubs) > 0 {
		for _, s := range t.stubs {
			t.here(s.from)
			if s.restore {
				t.restoreFlags()
			}
			t.mov32(t0, s.word)
			tails = append(tails, t.jmp())
		}
		for _, f := range tails {
			t.here(f)
		}
	}
	t.store32i(at(t.layout.Frame+frameBlock), b.ID)
	t.toAddr(t.jmp(), t.exit)
	for i := range t.code.Links {
		if l := &t.code.Links[i]; l.At != 0 {
			l.Stub = l.At + 4 + uint32(int32(le32(t.buf[l.At:])))
		}
	}
	t.code.Bytes = t.buf
}

func le32(p []byte) uint32 {
	return uint32(p[0]) | uint32(p[1])<<8 | uint32(p[2])<<16 | uint32(p[3])<<24
}
