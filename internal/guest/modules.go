package guest

import (
	"errors"
	"unicode"

	"vitrine.dev/vitrine/internal/printable"
)

// Bounds of what a guest can make us take.
const (
	maxModules       = 4096
	maxModuleSymbols = 1 << 18 // of all modules together
	maxUsers         = 256
)

// A Module is one of the guest's loaded ones. The keys are promised.
type Module struct {
	Name    string   `json:"name"`
	Size    uint64   `json:"size"` // in bytes, as /proc/modules has it
	Address uint64   `json:"address"`
	UsedBy  []string `json:"used_by"` // other modules
	Refs    int      `json:"references"`
	State   string   `json:"state"` // Live, Loading, Unloading

	addr uint64
}

// modules gives the loaded modules' structures in the kernel's order, the newest first; one that is not yet formed is left out.
func (k *Kernel) modules() ([]object, error) {
	head := k.address("modules")
	if head == 0 {
		return nil, errors.New("guest: no symbol modules")
	}
	if k.structure("module").size == 0 {
		return nil, errNoBTF
	}
	at, err := k.entries(head, "module", "list", maxModules)
	if err != nil {
		return nil, err
	}
	all := make([]object, 0, len(at))
	for _, a := range at {
		m, err := k.load("module", a)
		if err == nil && m.uint("state") != moduleUnformed {
			all = append(all, m)
		}
	}
	return all, nil
}

// enum module_state (include/linux/module.h).
const moduleUnformed = 3

var moduleStates = [...]string{"Live", "Loading", "Unloading"}

// Modules gives the guest's loaded modules, the newest first as /proc/modules has them.
func (k *Kernel) Modules() ([]Module, error) {
	objects, err := k.modules()
	if err != nil {
		return nil, err
	}
	all := make([]Module, 0, len(objects))
	for _, o := range objects {
		m := Module{Name: o.text("name"), UsedBy: []string{}, addr: o.addr}
		if s := o.uint("state"); s < uint64(len(moduleStates)) {
			m.State = moduleStates[s]
		}
		m.Refs = max(0, int(o.int("refcnt.counter"))-1) // MODULE_REF_BASE
		if f, ok := o.field("mem"); ok && f.Elem > 0 {  // ac3b43283923, v6.4
			m.Address = o.uint("mem[0].base")
			for i := range f.Size / f.Elem {
				m.Size += o.uint("mem[" + string(rune('0'+i)) + "].size")
			}
		} else {
			m.Address = o.uint("core_layout.base")
			m.Size = o.uint("core_layout.size") + o.uint("init_layout.size")
		}
		m.UsedBy = append(m.UsedBy, k.usersOf(o)...)
		all = append(all, m)
	}
	return all, nil
}

// ModuleORC tells where a module's ORC tables are and how many entries they have.
func (k *Kernel) ModuleORC(m Module) (ips, entries, n uint64) {
	o, err := k.load("module", m.addr)
	if err != nil {
		return 0, 0, 0
	}
	return o.uint("arch.orc_unwind_ip"), o.uint("arch.orc_unwind"), o.uint("arch.num_orcs") & 0xFFFFFFFF
}

// moduleBTF is what a module says of its own types, on top of the kernel's; nil where it says nothing. The kernel keeps a copy of each in a list
// (36e68442d1af, v5.11); the module's own goes when it has been loaded.
func (k *Kernel) moduleBTF(name string) *BTF {
	head := k.address("btf_modules")
	if k.BTF() == nil || head == 0 {
		return nil
	}
	at, err := k.entries(head, "btf_module", "list", maxModules)
	if err != nil {
		return nil
	}
	for _, a := range at {
		entry, err := k.load("btf_module", a)
		if err != nil {
			continue
		}
		m, err := k.load("module", entry.uint("module"))
		// One that brought a base of its own, whose types were told by name (45f3d8d2bf36, v6.11), does not fit the kernel's.
		if err != nil || m.text("name") != name || m.uint("btf_base_data_size") != 0 {
			continue
		}
		kept, err := k.load("btf", entry.uint("btf"))
		size := kept.uint("data_size")
		if err != nil || size > maxBTF {
			return nil
		}
		raw := make([]byte, size)
		if k.space.ReadAt(raw, kept.uint("data")) != nil {
			return nil
		}
		t, err := ParseBTF(raw, k.BTF())
		if err != nil {
			return nil
		}
		return t
	}
	return nil
}

// usersOf names the modules that use one.
func (k *Kernel) usersOf(m object) []string {
	at, err := k.entries(m.at("source_list"), "module_use", "source_list", maxUsers)
	if err != nil {
		return nil
	}
	name, ok := m.field("name")
	if !ok {
		return nil
	}
	var all []string
	for _, a := range at {
		use, err := k.load("module_use", a)
		if err != nil {
			continue
		}
		if s, err := k.space.CString(use.uint("source")+name.Off, int(min(name.Size, 64))); err == nil {
			all = append(all, printable.Text(s))
		}
	}
	return all
}

// moduleSymbols reads the symbols of the loaded modules, in the order of /proc/kallsyms.
func (k *Kernel) moduleSymbols() []Symbol {
	objects, _ := k.modules()
	var all []Symbol
	for _, m := range objects {
		if len(all) >= maxModuleSymbols {
			break
		}
		all = append(all, k.symbolsOf(m)...)
	}
	return all
}

// Kallsyms gives what /proc/kallsyms shows to the guest's root: the kernel's own symbols, the modules' and those of BPF programs, in its order.
// Trampolines of ftrace and kprobes are not in it.
func (k *Kernel) Kallsyms() []Symbol {
	all := make([]Symbol, 0, k.Symbols.Len()+maxModuleSymbols/64)
	for i := range k.Symbols.own.n {
		all = append(all, k.Symbols.own.symbol(i))
	}
	return append(append(all, k.moduleSymbols()...), k.bpfSymbols()...)
}

// bpfSymbols are those of compiled BPF programs and trampolines (kernel/bpf/core.c, bpf_get_kallsym).
func (k *Kernel) bpfSymbols() []Symbol {
	head := k.address("bpf_kallsyms")
	if head == 0 {
		return nil
	}
	at, err := k.entries(head, "bpf_ksym", "lnode", maxModuleSymbols)
	if err != nil {
		return nil
	}
	var all []Symbol
	for _, a := range at {
		if s, err := k.load("bpf_ksym", a); err == nil {
			all = append(all, Symbol{Addr: s.uint("start"), Type: 't', Name: s.text("name"), Module: "bpf"})
		}
	}
	return all
}

// symbolsOf reads one module's symbols: struct mod_kallsyms, ELF symbols with a table of types (kernel/module/kallsyms.c). A module that is just
// coming or going may have none.
func (k *Kernel) symbolsOf(m object) []Symbol {
	table, err := k.load("mod_kallsyms", m.uint("kallsyms"))
	if err != nil {
		return nil
	}
	tab, str, types := table.uint("symtab"), table.uint("strtab"), table.uint("typetab")
	count := min(table.uint("num_symtab")&0xFFFFFFFF, maxModuleSymbols)
	if tab == 0 || str == 0 || count == 0 {
		return nil
	}
	const elfSym = 24 // Elf64_Sym
	raw, kinds := make([]byte, count*elfSym), make([]byte, count)
	if k.space.ReadAt(raw, tab) != nil {
		return nil
	}
	if types == 0 || k.space.ReadAt(kinds, types) != nil {
		kinds = nil
	}
	exported := k.exportsOf(m)
	name := m.text("name")
	all := make([]Symbol, 0, count)
	for i := range count {
		e := raw[i*elfSym:]
		text, err := k.space.CString(str+uint64(le.Uint32(e)), 512)
		if err != nil || text == "" {
			continue
		}
		s := Symbol{Addr: le.Uint64(e[8:]), Type: 't', Name: printable.Text(text), Module: name}
		if kinds != nil {
			s.Type = kinds[i]
		}
		// kernel/kallsyms.c, s_show: capitals are for what is exported.
		if s.Type = byte(unicode.ToLower(rune(s.Type))); exported[s.Addr] == s.Name {
			s.Type = byte(unicode.ToUpper(rune(s.Type)))
		}
		if s.Type <= ' ' || s.Type >= 0x7F {
			s.Type = '?'
		}
		all = append(all, s)
	}
	return all
}

// exportsOf gives the names that a module exports to all, by address: struct kernel_symbol of place-relative value and name
// (CONFIG_HAVE_ARCH_PREL32_RELOCATIONS, which x86-64 always has since v4.19). What is exported to GPL modules alone is in another
// table up to v6.18, which /proc/kallsyms does not look at (kernel/module/kallsyms.c, is_exported).
func (k *Kernel) exportsOf(m object) map[uint64]string {
	names := map[uint64]string{}
	entry := k.structure("kernel_symbol")
	value, ok := entry.field("value_offset")
	label, ok2 := entry.field("name_offset")
	if !ok || !ok2 || entry.size > 64 {
		return names
	}
	at, n := m.uint("syms"), min(m.uint("num_syms")&0xFFFFFFFF, 1<<16)
	raw := make([]byte, n*entry.size)
	if n == 0 || k.space.ReadAt(raw, at) != nil {
		return names
	}
	for i := range n {
		place := func(f Field) uint64 {
			off := i*entry.size + f.Off
			return at + off + uint64(int64(int32(le.Uint32(raw[off:]))))
		}
		if s, err := k.space.CString(place(label), 512); err == nil {
			names[place(value)] = printable.Text(s)
		}
	}
	return names
}
