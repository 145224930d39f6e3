package cfi

import (
	"errors"
	"fmt"
)

// ErrEnd is returned by Step for the outermost frame: the table says that it has no caller.
var ErrEnd = errors.New("cfi: the outermost frame")

var (
	errLost = errors.New("a register's value is lost")
	errExpr = errors.New("a DWARF expression that is wrong or not known")
)

// Regs are the registers of a frame, by their numbers in DWARF: RA's place holds the address of the instruction to run next.
type Regs struct {
	Reg   [numRegs]uint64
	Known uint32 // a bit a register
}

// Set makes a register known.
func (r *Regs) Set(i int, v uint64) { r.Reg[i], r.Known = v, r.Known|1<<i }

// get gives a register's value.
func (r *Regs) get(i uint8) (uint64, error) {
	if i >= numRegs || r.Known>>i&1 == 0 {
		return 0, errLost
	}
	return r.Reg[i], nil
}

// Step makes the caller's registers of those of a frame, whose row is r, reading the stack from m. Of registers that a call may change and that were not
// saved, it takes the values on: a callee that keeps them says nothing of them either.
func (r *Row) Step(regs *Regs, m Memory) error {
	cfa, err := r.cfa(regs, m)
	if err != nil {
		return err
	}
	if r.Reg[RA].How == Undefined {
		return ErrEnd
	}
	next := Regs{}
	for i := range r.Reg {
		v, err := r.Reg[i].value(uint8(i), cfa, regs, m)
		switch {
		case err == nil:
			next.Set(i, v)
		case i == RA:
			return fmt.Errorf("cfi: return address: %w", err)
		}
	}
	if r.Reg[RSP].How == Same {
		next.Set(RSP, cfa)
	}
	*regs = next
	return nil
}

// cfa is the canonical frame address: the caller's stack pointer before its call.
func (r *Row) cfa(regs *Regs, m Memory) (uint64, error) {
	var v uint64
	var err error
	switch r.CFA.How {
	case InRegister:
		v, err = regs.get(r.CFA.Reg)
		v += uint64(r.CFA.Offset)
	case IsExpr:
		v, err = eval(r.CFA.Expr, regs, m, nil)
	default:
		err = errLost
	}
	if err != nil {
		return 0, fmt.Errorf("cfi: frame address: %w", err)
	}
	return v, nil
}

// value finds what register i is in the caller.
func (r *Rule) value(i uint8, cfa uint64, regs *Regs, m Memory) (uint64, error) {
	switch r.How {
	case Same:
		if i == RA { // a function that has not been entered by a call
			return 0, errLost
		}
		return regs.get(i)
	case AtCFA:
		return word(m, cfa+uint64(r.Offset))
	case IsCFA:
		return cfa + uint64(r.Offset), nil
	case InRegister:
		return regs.get(r.Reg)
	case AtExpr:
		a, err := eval(r.Expr, regs, m, &cfa)
		if err != nil {
			return 0, err
		}
		return word(m, a)
	case IsExpr:
		return eval(r.Expr, regs, m, &cfa)
	}
	return 0, errLost
}

func word(m Memory, addr uint64) (uint64, error) {
	var b [8]byte
	if err := m.ReadAt(b[:], addr); err != nil {
		return 0, err
	}
	return le.Uint64(b[:]), nil
}
