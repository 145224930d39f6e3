package guest

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"vitrine.dev/vitrine/internal/printable"
	"vitrine.dev/vitrine/internal/x86"
)

// A Kernel is a running Linux, known from its memory. Its methods belong to one goroutine at a time.
type Kernel struct {
	Text    uint64 // virtual address of _text
	Banner  string // "Linux version …"
	Symbols *Symbols

	t       Target
	space   *Space
	btf     func() *BTF
	structs map[string]*structure
	names   map[uint64]Owner // by page-table root: what user samples belong to
	users   users
}

// Bounds of the kernel's image and of its BTF section, in bytes.
const (
	maxImage = 512 << 20
	maxBTF   = 64 << 20
)

// Open finds the kernel that t runs: by the registers of the first CPU that is inside of one, or, where no CPU's can be had, by
// searching its memory.
func Open(t Target) (*Kernel, error) {
	var first error
	for i := range t.NumCPU() {
		var r x86.Regs
		if err := t.CPU(i, &r); err != nil {
			if !errors.Is(err, ErrNoRegisters) {
				first = err
			}
			continue
		}
		space, err := KernelSpace(t, &r)
		if err == nil {
			var k *Kernel
			if k, err = openIn(t, space); err == nil {
				return k, nil
			}
		}
		first = err
	}
	if first == nil {
		return search(t)
	}
	return nil, first
}

// openIn finds the kernel that is mapped in space.
func openIn(t Target, space *Space) (*Kernel, error) {
	text, size, err := space.Image()
	if err != nil {
		return nil, err
	}
	pa, _, err := space.Translate(text)
	if err != nil {
		return nil, err
	}
	image := make([]byte, min(size, maxImage))
	n, err := t.ReadPhys(image, pa)
	if image = image[:n]; n == 0 {
		return nil, fmt.Errorf("guest: kernel image at %#x: %w", uint64(pa), err)
	}
	own, err := Kallsyms(image, text)
	if err != nil {
		return nil, err
	}
	k := &Kernel{Text: text, t: t, space: space, structs: map[string]*structure{}, names: map[uint64]Owner{}}
	k.Symbols = NewSymbols(own)
	k.btf = sync.OnceValue(k.readBTF)
	if s, err := k.Symbols.Lookup("linux_banner"); err == nil {
		b, _ := k.space.CString(s.Addr, 512)
		k.Banner = printable.Text(string(bytes.TrimRight([]byte(b), "\n")))
	}
	k.Refresh()
	return k, nil
}

// ReadAt fills p from a virtual address of the kernel's on.
func (k *Kernel) ReadAt(p []byte, va uint64) error { return k.space.ReadAt(p, va) }

// VMCoreInfo is the note that the kernel keeps for who reads its dumps (CONFIG_VMCORE_INFO), or nil.
func (k *Kernel) VMCoreInfo() []byte {
	at, size := k.variable("vmcoreinfo_data"), k.variable("vmcoreinfo_size")
	if at == 0 || size == 0 || size > 4096 {
		return nil
	}
	b := make([]byte, size)
	if k.space.ReadAt(b, at) != nil || !bytes.HasPrefix(b, infoPrefix) {
		return nil
	}
	return b
}

// BTF is the kernel's own, or nil where it has none.
func (k *Kernel) BTF() *BTF { return k.btf() }

func (k *Kernel) readBTF() *BTF {
	from, err := k.Symbols.Lookup("__start_BTF")
	if err != nil {
		return nil
	}
	to, err := k.Symbols.Lookup("__stop_BTF")
	if err != nil || to.Addr <= from.Addr || to.Addr-from.Addr > maxBTF {
		return nil
	}
	blob := make([]byte, to.Addr-from.Addr)
	if k.space.ReadAt(blob, from.Addr) != nil {
		return nil
	}
	b, err := ParseBTF(blob)
	if err != nil {
		return nil
	}
	return b
}

// Refresh reads again what changes: the modules and their symbols, and what processes have mapped. What cannot be read stays as it was.
func (k *Kernel) Refresh() {
	clear(k.users.maps)
	mods, err := k.moduleSymbols()
	if err != nil || len(mods) == 0 {
		return
	}
	k.Symbols = k.Symbols.with(mods)
}

// isText tells whether a symbol names code.
func isText(s Symbol) bool {
	switch s.Type {
	case 'T', 't', 'W', 'w':
		return true
	}
	return false
}

// Function names the kernel function at ip.
func (k *Kernel) Function(ip uint64) (Symbol, bool) {
	s, ok := k.Symbols.At(ip)
	return s, ok && isText(s)
}

// address is a symbol's, or 0.
func (k *Kernel) address(name string) uint64 {
	s, err := k.Symbols.Lookup(name)
	if err != nil {
		return 0
	}
	return s.Addr
}

// variable reads 8 bytes at a symbol, or gives 0.
func (k *Kernel) variable(name string) uint64 {
	a := k.address(name)
	if a == 0 {
		return 0
	}
	v, _ := k.space.Uint64(a)
	return v
}
