// Package difftest runs the same instructions on the real processor and on package interp, and compares all that a program can see.
//
// A case is a few instructions of 64- or 32-bit user code with the registers and memory they start from. The real processor runs it in a traced child
// process (native.go), interp in a guest without a kernel (guest.go). Both have the same few pages at the same addresses; the instructions are made from
// the decoder's tree (generate.go), so that an encoding in its table cannot be missed.
package difftest

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"

	"vitrine.dev/vitrine/internal/x86/decode"
)

// Where the pages of a case are, in both worlds. Nothing else is mapped for user code.
const (
	pageSize = 4096
	codeVA   = 0x10000000          // two pages: the second is writable too
	dataVA   = 0x20001000          // two pages that are, not executable
	roVA     = dataVA + 2*pageSize // one that is neither
	dataLen  = 3 * pageSize
)

// Registers that both worlds show, in this order.
const (
	regRIP = 16 + iota
	regFlags
	regFS
	regGS
	numRegs
)

var regNames = [numRegs]string{"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags", "fsbase", "gsbase"}

// A State is the processor before or after a case.
type State struct {
	Regs [numRegs]uint64
	FX   [512]byte // as FXSAVE64 writes it
	YMM  [256]byte // upper halves of the YMM registers, as XSAVE writes them; zero without AVX
}

// A Case is what is run.
type Case struct {
	State
	Seed uint64 // the data pages are made of it
	Code []byte // at Regs[regRIP]; ends with INT3
	Bits int    // size of code: 64, or 32 for compatibility mode
	ABI  bool   // no instruction reads flags that a caller or a called function left
}

func (c *Case) mode() decode.Mode { return decode.Mode(c.Bits / 8) }

// selectors are those of Linux for a program of this size: CS, and DS and ES.
func (c *Case) selectors() (cs, ds uint64) {
	if c.Bits == 32 {
		return userCS32, userSS
	}
	return userCS, 0
}

// An Outcome is how a case ended.
type Outcome struct {
	State
	Vector uint8  // the exception that ended it, #BP for the INT3 at the end
	Addr   uint64 // #PF: CR2
	Data   [dataLen]byte
}

// pool is what data pages are cut from: numbers that are corners for integers, floats and packed data, among random ones.
var pool = func() (p [1<<16 + dataLen]byte) {
	rng := rand.New(rand.NewPCG(1, 0xDA7A))
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], interesting(rng))
	}
	return p
}()

// text is the pages of code: INT3 where there is none.
func (c *Case) text() (pages [2 * pageSize]byte) {
	pages = noCode
	copy(pages[c.Regs[regRIP]-codeVA:], c.Code)
	return pages
}

var noCode = func() (pages [2 * pageSize]byte) {
	for i := range pages {
		pages[i] = 0xCC
	}
	return pages
}()

// data is what the data pages of a case begin as.
func (c *Case) data() []byte {
	at := c.Seed % (1 << 16)
	return pool[at : at+dataLen]
}

// String is the case as testdata keeps it: name and value a line.
func (c *Case) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "bits %d\ncode %x\nseed %d\n", c.Bits, c.Code, c.Seed)
	if c.ABI {
		b.WriteString("abi true\n")
	}
	for i, v := range c.Regs {
		fmt.Fprintf(&b, "%s %#x\n", regNames[i], v)
	}
	fmt.Fprintf(&b, "fx %x\nymm %x\n", bytes.TrimRight(c.FX[:416], "\x00"), bytes.TrimRight(c.YMM[:], "\x00"))
	return b.String()
}

// Parse reads what String writes. Empty lines and those that begin with # are skipped.
func Parse(s string) (*Case, error) {
	c := &Case{Bits: 64}
	for i, line := range strings.Split(s, "\n") {
		name, value, _ := strings.Cut(line, " ")
		if name == "" || name[0] == '#' {
			continue
		}
		if err := c.set(name, value); err != nil {
			return nil, fmt.Errorf("difftest: line %d: %w", i+1, err)
		}
	}
	if rip := c.Regs[regRIP]; len(c.Code) == 0 || rip < codeVA || rip+uint64(len(c.Code)) > codeVA+2*pageSize {
		return nil, fmt.Errorf("difftest: %d bytes of code at %#x are not in the code pages", len(c.Code), rip)
	}
	return c, nil
}

func (c *Case) set(name, value string) (err error) {
	switch name {
	case "code":
		c.Code, err = hex.DecodeString(value)
		return err
	case "bits":
		if c.Bits, err = strconv.Atoi(value); c.Bits != 32 && c.Bits != 64 {
			return fmt.Errorf("code of %s bits", value)
		}
		return err
	case "abi":
		c.ABI, err = strconv.ParseBool(value)
		return err
	case "seed":
		c.Seed, err = strconv.ParseUint(value, 10, 64)
		return err
	case "fx", "ymm":
		to := c.FX[:]
		if name == "ymm" {
			to = c.YMM[:]
		}
		p, err := hex.DecodeString(value)
		copy(to, p)
		return err
	}
	for i, n := range regNames {
		if n == name {
			c.Regs[i], err = strconv.ParseUint(value, 0, 64)
			return err
		}
	}
	return fmt.Errorf("no %q", name)
}
