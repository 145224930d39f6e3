package guest

import (
	"bytes"
	"errors"
	"fmt"

	"vitrine.dev/vitrine/internal/x86"
)

// A Kernel is a running Linux, known from its memory.
type Kernel struct {
	Text    uint64 // virtual address of _text
	Banner  string // "Linux version …"
	Symbols *Symbols
	BTF     *BTF // nil where the kernel has none

	t     Target
	space *Space
	lay   layout
	names map[uint64]Process // by page-table root: what user samples belong to
}

// maxImage bounds the kernel's image in bytes.
const maxImage = 512 << 20

// Open finds the kernel that t runs, by the registers of the first CPU that is inside of one.
func Open(t Target) (*Kernel, error) {
	first := error(ErrNoRegisters)
	for i := range t.NumCPU() {
		var r x86.Regs
		if err := t.CPU(i, &r); err != nil {
			first = err
			continue
		}
		k, err := openAt(t, &r)
		if err == nil {
			return k, nil
		}
		first = err
	}
	return nil, first
}

func openAt(t Target, r *x86.Regs) (*Kernel, error) {
	space, err := KernelSpace(t, r)
	if err != nil {
		return nil, err
	}
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
	k := &Kernel{Text: text, t: t, space: space, Symbols: NewSymbols(own), names: map[uint64]Process{}}
	if b, ok := k.bytes(image, "linux_banner", "", 512); ok {
		k.Banner = printable(string(bytes.TrimRight(bytes.SplitN(b, []byte{0}, 2)[0], "\n")))
	}
	if b, ok := k.bytes(image, "__start_BTF", "__stop_BTF", 0); ok {
		k.BTF, _ = ParseBTF(bytes.Clone(b))
	}
	k.lay = k.findLayout()
	k.Refresh()
	return k, nil
}

// bytes gives the image's bytes from symbol from to symbol to, or limit of them.
func (k *Kernel) bytes(image []byte, from, to string, limit uint64) ([]byte, bool) {
	a, err := k.Symbols.Lookup(from)
	if err != nil || a.Addr < k.Text || a.Addr-k.Text >= uint64(len(image)) {
		return nil, false
	}
	off := a.Addr - k.Text
	n := min(limit, uint64(len(image))-off)
	if to != "" {
		b, err := k.Symbols.Lookup(to)
		if err != nil || b.Addr < a.Addr || b.Addr-a.Addr > uint64(len(image))-off {
			return nil, false
		}
		n = b.Addr - a.Addr
	}
	return image[off : off+n], true
}

// Refresh reads again what changes: the modules and their symbols. What cannot be read stays as it was.
func (k *Kernel) Refresh() {
	mods, err := k.moduleSymbols()
	if err != nil || len(mods) == 0 {
		return
	}
	own := make([]Symbol, 0, len(k.Symbols.all)+len(mods))
	for _, s := range k.Symbols.all {
		if s.Module == "" {
			own = append(own, s)
		}
	}
	k.Symbols = NewSymbols(append(own, mods...))
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

var errNoBTF = errors.New("guest: the kernel has no BTF: its structures are not known")

// layout is where the fields are that this package reads; a field that is missing is -1.
type layout struct {
	taskPID, taskTGID, taskComm, taskMM, taskTasks int64
	mmPGD                                          int64
	modList, modName, modSyms                      int64
	symTab, symNum, strTab, symTypes               int64
}

// findLayout asks BTF; without it, the task's name is found by what the first task is called.
func (k *Kernel) findLayout() layout {
	at := func(name, path string) int64 {
		if k.BTF == nil {
			return -1
		}
		off, err := k.BTF.Offset(name, path)
		if err != nil || off > 1<<20 {
			return -1
		}
		return int64(off)
	}
	l := layout{
		taskPID: at("task_struct", "pid"), taskTGID: at("task_struct", "tgid"), taskComm: at("task_struct", "comm"),
		taskMM: at("task_struct", "mm"), taskTasks: at("task_struct", "tasks"), mmPGD: at("mm_struct", "pgd"),
		modList: at("module", "list"), modName: at("module", "name"), modSyms: at("module", "kallsyms"),
		symTab: at("mod_kallsyms", "symtab"), symNum: at("mod_kallsyms", "num_symtab"), strTab: at("mod_kallsyms", "strtab"),
		symTypes: at("mod_kallsyms", "typetab"),
	}
	if l.taskComm < 0 {
		if init, err := k.Symbols.Lookup("init_task"); err == nil {
			b := make([]byte, 16<<10)
			if k.space.ReadAt(b, init.Addr) == nil {
				l.taskComm = int64(bytes.Index(b, []byte("swapper")))
			}
		}
	}
	return l
}
