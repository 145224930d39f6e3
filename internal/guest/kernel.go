package guest

import (
	"bytes"
	"errors"
	"sync"

	"vitrine.dev/vitrine/internal/mem"
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
	image   *ramImage
	cache   *Cache
	key     string // in the cache
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
func Open(t Target) (*Kernel, error) { return (*Cache)(nil).Open(t) }

// Open is Open, and takes what the cache knows of such a kernel.
func (c *Cache) Open(t Target) (*Kernel, error) {
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
			if k, err = c.openIn(t, space); err == nil {
				k.prove() // the registers' tables are of a process, and go with it
				return k, nil
			}
		}
		first = err
	}
	if first == nil {
		return c.search(t)
	}
	return nil, first
}

// openIn finds the kernel that is mapped in space.
func (c *Cache) openIn(t Target, space *Space) (*Kernel, error) {
	text, size, err := space.Image()
	if err != nil {
		return nil, err
	}
	pa, _, err := space.Translate(text)
	if err != nil {
		return nil, err
	}
	k := &Kernel{Text: text, t: t, space: space, cache: c, structs: map[string]*structure{}, names: map[uint64]Owner{}}
	k.image = &ramImage{t: t, from: pa, n: min(size, maxImage)}
	d, key := c.symbols(k.image, text)
	if d == nil {
		if d, err = findKallsyms(k.image, text); err != nil {
			return nil, err
		}
		d.table.index()
		s := Symbols{own: d.table}
		if from, to := s.ownAddress("__start_notes"), s.ownAddress("__stop_notes"); from > text && to > from && to-from <= 4096 { // the build id
			d.parts = append(d.parts, span{from - text, to - from})
		}
		key = c.keepSymbols(k.image, d)
	}
	k.key = key
	k.Symbols = &Symbols{own: d.table, load: k.moduleSymbols}
	k.btf = sync.OnceValue(k.readBTF)
	if at := k.address("linux_banner"); at != 0 {
		b, _ := k.space.CString(at, 512)
		k.Banner = printable.Text(string(bytes.TrimRight([]byte(b), "\n")))
	}
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

// A Mapping is memory that is contiguous, virtually and physically.
type Mapping struct {
	Virtual  uint64
	Physical mem.Addr
	Size     uint64
}

// Mapping is where the kernel's image is.
func (k *Kernel) Mapping() Mapping { return Mapping{k.Text, k.image.from, k.image.n} }

// DirectMap is the virtual address at which the kernel has physical memory from 0 on.
func (k *Kernel) DirectMap() uint64 {
	if v := k.variable("page_offset_base"); v >= kernelHalf { // CONFIG_RANDOMIZE_MEMORY, or 5 levels
		return v
	}
	return 0xffff888000000000 // Documentation/arch/x86/x86_64/mm.rst
}

// BTF is the kernel's own, or nil where it has none.
func (k *Kernel) BTF() *BTF { return k.btf() }

func (k *Kernel) readBTF() *BTF {
	from, to := k.address("__start_BTF"), k.address("__stop_BTF")
	if from < k.Text || to <= from || to-from > maxBTF {
		return nil
	}
	at := span{from - k.Text, to - from}
	if b := k.cache.types(k.key, k.image, at); b != nil {
		return b
	}
	raw := k.image.read(at.off, at.size)
	b, err := ParseBTF(raw, nil)
	if err != nil {
		return nil
	}
	k.cache.keepTypes(k.key, raw, b)
	return b
}

// Refresh forgets what changes: the modules' symbols, and what processes have mapped.
func (k *Kernel) Refresh() {
	clear(k.users.maps)
	k.Symbols.loaded = false
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

// address is where a symbol of the kernel's own is, or 0.
func (k *Kernel) address(name string) uint64 { return k.Symbols.ownAddress(name) }

// variable reads 8 bytes at a symbol, or gives 0.
func (k *Kernel) variable(name string) uint64 {
	a := k.address(name)
	if a == 0 {
		return 0
	}
	v, _ := k.space.Uint64(a)
	return v
}
