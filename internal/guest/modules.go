package guest

// maxModules and maxModuleSymbols bound the walk of a list that a guest may have made endless.
const (
	maxModules       = 4096
	maxModuleSymbols = 1 << 18
)

// moduleSymbols reads the symbols of the loaded modules: struct module's mod_kallsyms, ELF symbols with a table of types.
func (k *Kernel) moduleSymbols() ([]Symbol, error) {
	head, err := k.Symbols.Lookup("modules")
	if err != nil {
		return nil, err
	}
	l := &k.lay
	if l.modList < 0 || l.modName < 0 || l.modSyms < 0 || l.symTab < 0 {
		return nil, errNoBTF
	}
	var all []Symbol
	p, err := k.space.Uint64(head.Addr)
	for n := 0; err == nil && p != head.Addr && n < maxModules && len(all) < maxModuleSymbols; n++ {
		mod := p - uint64(l.modList)
		name, e := k.space.CString(mod+uint64(l.modName), 56)
		if e != nil {
			return all, e
		}
		all = append(all, k.symbolsOf(mod, printable(name))...)
		p, err = k.space.Uint64(p)
	}
	return all, err
}

// symbolsOf reads one module's symbols; a module that is just coming or going may have none.
func (k *Kernel) symbolsOf(mod uint64, name string) []Symbol {
	l := &k.lay
	at, err := k.space.Uint64(mod + uint64(l.modSyms))
	if err != nil || at == 0 {
		return nil
	}
	field := func(off int64) uint64 {
		v, err := k.space.Uint64(at + uint64(off))
		if err != nil || off < 0 {
			return 0
		}
		return v
	}
	tab, str, types := field(l.symTab), field(l.strTab), field(l.symTypes)
	count := min(field(l.symNum)&0xFFFFFFFF, maxModuleSymbols)
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
	var all []Symbol
	for i := uint64(1); i < count; i++ {
		e := raw[i*elfSym:]
		value, shndx := le.Uint64(e[8:]), le.Uint16(e[6:])
		if value == 0 || shndx == 0 {
			continue
		}
		sym, err := k.space.CString(str+uint64(le.Uint32(e)), 512)
		if err != nil || sym == "" {
			continue
		}
		kind := byte('t')
		if kinds != nil {
			kind = kinds[i]
		}
		all = append(all, Symbol{Addr: value, Type: kind, Name: printable(sym), Module: name})
	}
	return all
}

// printable keeps what a guest wrote from acting on a terminal: control characters and what is not ASCII become '?'.
func printable(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < 0x20 || c >= 0x7F {
			b[i] = '?'
		}
	}
	return string(b)
}
