package cfi

import (
	"errors"
	"fmt"
)

// Numbers of registers in DWARF (System V ABI for AMD64, figure 3.36). RA is the return address's column.
const (
	RAX = iota
	RDX
	RCX
	RBX
	RSI
	RDI
	RBP
	RSP
	R8
	R9
	R10
	R11
	R12
	R13
	R14
	R15
	RA
	numRegs
)

// A How is where a register's value in the caller comes from.
type How uint8

// Rules of DWARF 5, 6.4.1.
const (
	Same       How = iota // the register has it still; of the CFA: it has no rule
	Undefined             // it is lost; of RA: there is no caller
	AtCFA                 // in memory, at CFA+Offset
	IsCFA                 // CFA+Offset
	InRegister            // in another register, plus Offset
	AtExpr                // in memory, where Expr says
	IsExpr                // what Expr gives
)

// A Rule finds one value.
type Rule struct {
	How    How
	Reg    uint8
	Offset int64
	Expr   []byte // DWARF 5, 2.5; see eval
}

// A Row has the rules for one instruction.
type Row struct {
	CFA    Rule // InRegister or IsExpr
	Reg    [numRegs]Rule
	Signal bool   // the frame was interrupted: its address is the next instruction's, not a return address
	Start  uint64 // of the function, as far as the entry covers it
}

// maxStates bounds DW_CFA_remember_state.
const maxStates = 32

// Call frame instructions (DWARF 5, 7.24; the last two are GNU's).
const (
	cfaNop            = 0x00
	cfaSetLoc         = 0x01
	cfaAdvanceLoc1    = 0x02
	cfaAdvanceLoc2    = 0x03
	cfaAdvanceLoc4    = 0x04
	cfaOffsetExtended = 0x05
	cfaRestoreExt     = 0x06
	cfaUndefined      = 0x07
	cfaSameValue      = 0x08
	cfaRegister       = 0x09
	cfaRememberState  = 0x0A
	cfaRestoreState   = 0x0B
	cfaDefCFA         = 0x0C
	cfaDefCFARegister = 0x0D
	cfaDefCFAOffset   = 0x0E
	cfaDefCFAExpr     = 0x0F
	cfaExpression     = 0x10
	cfaOffsetExtSF    = 0x11
	cfaDefCFASF       = 0x12
	cfaDefCFAOffsetSF = 0x13
	cfaValOffset      = 0x14
	cfaValOffsetSF    = 0x15
	cfaValExpression  = 0x16
	cfaGNUArgsSize    = 0x2E
	cfaGNUNegOffset   = 0x2F

	// In the upper two bits, with an operand in the others.
	cfaAdvanceLoc = 1
	cfaOffset     = 2
	cfaRestore    = 3
)

var errStates = errors.New("states are restored that were not remembered, or too many are")

// bytesAt is a program, read as if it stood at its address.
type bytesAt struct {
	p    []byte
	addr uint64
}

func (b bytesAt) ReadAt(p []byte, addr uint64) error {
	if addr < b.addr || addr-b.addr > uint64(len(b.p)) || uint64(copy(p, b.p[addr-b.addr:])) < uint64(len(p)) {
		return errTruncated
	}
	return nil
}

// row runs the programs of an entry and of its CIE up to an address.
func (e *description) row(addr uint64) (*Row, error) {
	p := program{cie: e.cie, loc: e.start, addr: addr}
	if _, err := p.run(e.cie.code, 0); err != nil {
		return nil, err
	}
	p.initial = p.row
	if _, err := p.run(e.code, e.codeAt); err != nil {
		return nil, err
	}
	p.row.Signal = e.signal
	p.row.Start = e.start
	return &p.row, nil
}

// A program is the state of the call frame instructions' machine.
type program struct {
	*cie
	row     Row
	initial Row
	saved   []Row
	loc     uint64 // what the row under way holds for begins here
	addr    uint64
}

// run executes instructions until they concern what lies behind addr.
func (p *program) run(code []byte, at uint64) (done bool, err error) {
	d := &reader{mem: bytesAt{code, at}, at: at, end: at + uint64(len(code))}
	for d.err == nil && d.at < d.end {
		op := d.byte()
		switch n := uint64(op & 0x3F); op >> 6 {
		case cfaAdvanceLoc:
			done = p.advance(n)
		case cfaOffset:
			p.set(n, Rule{How: AtCFA, Offset: int64(d.uleb()) * p.dataAlign})
		case cfaRestore:
			p.restore(n)
		default:
			done, err = p.extended(op, d)
		}
		if done || err != nil {
			return done, err
		}
	}
	return false, d.err
}

// advance moves on and tells whether the row under way is the one wanted.
func (p *program) advance(n uint64) bool {
	p.loc += n * p.codeAlign
	return p.loc > p.addr
}

// set gives a register a rule; those of vector registers and the like are nobody's business here.
func (p *program) set(reg uint64, r Rule) {
	if reg < numRegs {
		p.row.Reg[reg] = r
	}
}

func (p *program) restore(reg uint64) {
	if reg < numRegs {
		p.row.Reg[reg] = p.initial.Reg[reg]
	}
}

func (p *program) extended(op byte, d *reader) (done bool, err error) {
	factored := func() int64 { return int64(d.uleb()) * p.dataAlign }
	signed := func() int64 { return d.sleb() * p.dataAlign }
	switch op {
	case cfaNop:
	case cfaSetLoc:
		p.loc = d.pointer(p.enc)
		done = p.loc > p.addr
	case cfaAdvanceLoc1:
		done = p.advance(d.uint(1))
	case cfaAdvanceLoc2:
		done = p.advance(d.uint(2))
	case cfaAdvanceLoc4:
		done = p.advance(d.uint(4))
	case cfaOffsetExtended:
		reg := d.uleb()
		p.set(reg, Rule{How: AtCFA, Offset: factored()})
	case cfaOffsetExtSF:
		reg := d.uleb()
		p.set(reg, Rule{How: AtCFA, Offset: signed()})
	case cfaGNUNegOffset:
		reg := d.uleb()
		p.set(reg, Rule{How: AtCFA, Offset: -factored()})
	case cfaValOffset:
		reg := d.uleb()
		p.set(reg, Rule{How: IsCFA, Offset: factored()})
	case cfaValOffsetSF:
		reg := d.uleb()
		p.set(reg, Rule{How: IsCFA, Offset: signed()})
	case cfaRestoreExt:
		p.restore(d.uleb())
	case cfaUndefined:
		p.set(d.uleb(), Rule{How: Undefined})
	case cfaSameValue:
		p.set(d.uleb(), Rule{How: Same})
	case cfaRegister:
		reg := d.uleb()
		p.set(reg, Rule{How: InRegister, Reg: register(d.uleb())})
	case cfaExpression:
		reg := d.uleb()
		p.set(reg, Rule{How: AtExpr, Expr: d.take(d.uleb())})
	case cfaValExpression:
		reg := d.uleb()
		p.set(reg, Rule{How: IsExpr, Expr: d.take(d.uleb())})
	case cfaRememberState:
		if len(p.saved) >= maxStates {
			return false, errStates
		}
		p.saved = append(p.saved, p.row)
	case cfaRestoreState:
		if len(p.saved) == 0 {
			return false, errStates
		}
		p.row = p.saved[len(p.saved)-1]
		p.saved = p.saved[:len(p.saved)-1]
	case cfaDefCFA:
		reg := register(d.uleb())
		p.row.CFA = Rule{How: InRegister, Reg: reg, Offset: int64(d.uleb())}
	case cfaDefCFASF:
		reg := register(d.uleb())
		p.row.CFA = Rule{How: InRegister, Reg: reg, Offset: signed()}
	case cfaDefCFARegister:
		p.row.CFA = Rule{How: InRegister, Reg: register(d.uleb()), Offset: p.row.CFA.Offset}
	case cfaDefCFAOffset:
		p.row.CFA.Offset = int64(d.uleb())
	case cfaDefCFAOffsetSF:
		p.row.CFA.Offset = signed()
	case cfaDefCFAExpr:
		p.row.CFA = Rule{How: IsExpr, Expr: d.take(d.uleb())}
	case cfaGNUArgsSize:
		d.uleb()
	default:
		return false, fmt.Errorf("call frame instruction %#x", op)
	}
	return done, d.err
}

// register is a register's number as rules keep it; one that is not kept is noRegister.
func register(n uint64) uint8 {
	if n >= numRegs {
		return noRegister
	}
	return uint8(n)
}

const noRegister = 0xFF
