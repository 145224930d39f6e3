package boot

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/machine/layout"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

var le = binary.LittleEndian

// A seg is a segment of a made ELF file.
type seg struct {
	kind           uint32
	vaddr, phys    uint64
	data           []byte
	memSize        uint64
	sizeOnlyHeader uint64 // what the header says of the file size, if not len(data)
}

// makeELF64 is a small executable.
func makeELF64(machine uint16, entry uint64, segs ...seg) []byte {
	p := make([]byte, 64+56*len(segs))
	copy(p, "\x7fELF\x02\x01\x01")
	le.PutUint16(p[16:], 2)
	le.PutUint16(p[18:], machine)
	le.PutUint64(p[24:], entry)
	le.PutUint64(p[32:], 64)
	le.PutUint16(p[54:], 56)
	le.PutUint16(p[56:], uint16(len(segs)))
	for i, s := range segs {
		h := p[64+56*i:]
		size := uint64(len(s.data))
		if s.sizeOnlyHeader != 0 {
			size = s.sizeOnlyHeader
		}
		le.PutUint32(h, s.kind)
		for j, v := range []uint64{uint64(len(p)), s.vaddr, s.phys, size, max(s.memSize, size)} {
			le.PutUint64(h[8+8*j:], v)
		}
		p = append(p, s.data...)
	}
	return p
}

func makeELF32(entry uint32, phys uint32, data []byte, memSize uint32) []byte {
	p := make([]byte, 52+32)
	copy(p, "\x7fELF\x01\x01\x01")
	le.PutUint16(p[18:], elf386)
	le.PutUint32(p[24:], entry)
	le.PutUint32(p[28:], 52)
	le.PutUint16(p[42:], 32)
	le.PutUint16(p[44:], 1)
	for j, v := range []uint32{elfLoad, 84, phys, phys, uint32(len(data)), memSize} {
		le.PutUint32(p[52+4*j:], v)
	}
	return append(p, data...)
}

// tinyVmlinux is a 64-bit kernel of 4 KiB, linked as Linux is: word 1 holds its own address, word 2 its low half, word 3 an inverse.
func tinyVmlinux() []byte {
	text := make([]byte, 4096)
	le.PutUint64(text[8:], kernelMap+0x1000008)
	le.PutUint32(text[16:], 0x81000010)
	le.PutUint32(text[24:], 0x1000)
	return makeELF64(elfX86_64, 0x1000000, seg{kind: elfLoad, vaddr: kernelMap + 0x1000000, phys: 0x1000000, data: text, memSize: 1 << 20})
}

func words(ws ...uint32) (p []byte) {
	for _, w := range ws {
		p = le.AppendUint32(p, w)
	}
	return p
}

var tinyRelocs = words(0, 0x81000008, 0, 0x81000018, 0, 0x81000010)

// makeBzImage wraps a payload as scripts of Linux do.
func makeBzImage(payload []byte) []byte {
	p := make([]byte, 1024+512)
	p[hdrStart] = 2
	le.PutUint16(p[hdrBootFlag:], 0xAA55)
	p[hdrJump-1], p[hdrJump] = 0xEB, 0x6A
	copy(p[hdrMagic:], "HdrS")
	le.PutUint16(p[hdrVersion:], 0x20F)
	le.PutUint16(p[hdrVersionText:], 0x300)
	copy(p[0x500:], "6.1.0-test (a@b) #1\x00")
	le.PutUint32(p[hdrInitrdMax:], 0x7FFFFFFF)
	le.PutUint32(p[hdrAlign:], kernelAlign)
	p[hdrRelocatable] = 1
	le.PutUint16(p[hdrXLoadFlags:], xlfKernel64|xlfAbove4G)
	le.PutUint32(p[hdrCmdlineSize:], 2047)
	le.PutUint64(p[hdrPreferred:], 0x1000000)
	le.PutUint32(p[hdrInitSize:], 2<<20)
	const off = 0x400
	le.PutUint32(p[hdrPayload:], off)
	le.PutUint32(p[hdrPayloadSize:], uint32(len(payload)))
	p = append(p, make([]byte, off)...)
	return append(p, payload...)
}

func gz(p []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(p)
	w.Close()
	return b.Bytes()
}

func tinyBzImage() []byte { return makeBzImage(gz(append(tinyVmlinux(), tinyRelocs...))) }

func first(uint64) uint64   { return 0 }
func last(n uint64) uint64  { return n - 1 }
func image(p []byte) *Image { return Bytes("test", p) }
func patched(p []byte, off int, b ...byte) []byte {
	p = slices.Clone(p)
	copy(p[off:], b)
	return p
}

func TestBzImageIsPlacedAtRandom(t *testing.T) {
	ram := newRAM(t, 256<<20)
	s, f, err := Load(ram, Config{Kernel: image(tinyBzImage()), CommandLine: "quiet", RSDP: 0xE0000, Random: last, Initrd: []*Image{Bytes("i", make([]byte, 5000))}})
	if err != nil {
		t.Fatal(err)
	}
	// The initrd takes the last two pages, the kernel the last 2 MiB place before it; its address is the last in 1 GiB.
	const phys, delta = 254 << 20, kernelWindow - 2<<20 - 16<<20
	if f.Physical != phys || f.Offset != delta || f.Virtual != kernelMap+0x1000000+delta || f.Version != "6.1.0-test (a@b) #1" || f.Protocol != Linux64 || f.Packed != "gzip" {
		t.Errorf("%+v", *f)
	}
	for _, c := range []struct {
		what      string
		got, want uint64
	}{
		{"the 8-byte relocation", ram.Load64(phys + 8), kernelMap + 0x1000008 + delta},
		{"the 4-byte relocation", uint64(ram.Load32(phys + 16)), 0x81000010 + delta},
		{"the inverse relocation", uint64(ram.Load32(phys + 24)), 1<<32 + 0x1000 - delta},
		{"RIP", s.RIP, phys},
		{"RSI", s.GPR[x86.RSI], uint64(zeroPage)},
		{"CS", uint64(s.Seg[x86.CS].Selector), bootCS},
		{"SS", uint64(s.Seg[x86.SS].Selector), bootDS},
		{"EFER", s.EFER, x86.EFERLME | x86.EFERLMA},
		{"RFLAGS", s.RFLAGS, x86.Fixed},
		{"the page tables' answer for the kernel", walk(ram, s.CR3, phys), phys},
		{"the page tables' answer for 0xFEE00000", walk(ram, s.CR3, 0xFEE00000), 0xFEE00000},
		{"loadflags", uint64(ram.Load32(zeroPage+0x210)) >> 8 & loadKASLR, loadKASLR},
		{"hardware_subarch", uint64(ram.Load32(zeroPage + hdrSubarch)), 0},
		{"ramdisk_image", uint64(ram.Load32(zeroPage + hdrRamdisk)), 256<<20 - 8192},
		{"ramdisk_size", uint64(ram.Load32(zeroPage + hdrRamdiskSize)), 5000},
		{"acpi_rsdp_addr", ram.Load64(zeroPage + zpRSDP), 0xE0000},
		{"e820_entries", uint64(ram.Load32(zeroPage+zpE820Entries) & 0xFF), uint64(len(layout.E820(256 << 20)))},
		{"cmd_line_ptr's text", uint64(ram.Load32(mem.Addr(ram.Load32(zeroPage + hdrCmdline)))), uint64(le.Uint32([]byte("quie")))},
		{"the GDT's code segment", ram.Load64(gdtAddr + bootCS), 0x00AF9B000000FFFF},
		{"the GDT's data segment", ram.Load64(gdtAddr + bootDS), 0x00CF93000000FFFF},
	} {
		if c.got != c.want {
			t.Errorf("%s: %#x, want %#x", c.what, c.got, c.want)
		}
	}
}

// walk translates by 4-level tables of 2 MiB pages.
func walk(ram *mem.Memory, cr3, a uint64) uint64 {
	t := cr3
	for _, shift := range []int{39, 30} {
		e := ram.Load64(mem.Addr(t + a>>shift&511*8))
		if e&1 == 0 {
			return ^uint64(0)
		}
		t = e &^ 0xFFF
	}
	e := ram.Load64(mem.Addr(t + a>>21&511*8))
	return e&^(1<<21-1) + a&(1<<21-1)
}

func TestKernelAbove4GiBIsMapped(t *testing.T) {
	ram := newRAM(t, 6<<30)
	s, f, err := Load(ram, Config{Kernel: image(tinyBzImage()), Random: last})
	if err != nil {
		t.Fatal(err)
	}
	if want := mem.Addr(7<<30 - 2<<20); f.Physical != want || walk(ram, s.CR3, uint64(want)) != uint64(want) {
		t.Errorf("at %#x, mapped to %#x; want %#x", f.Physical, walk(ram, s.CR3, uint64(want)), want)
	}
}

func TestFiveLevelsWhereTheKernelKnowsThem(t *testing.T) {
	const flags = xlfKernel64 | xlfAbove4G
	for _, c := range []struct {
		what  string
		flags byte
		words string
		asked bool
		want  bool
	}{
		{"asked for", flags | xlf5Level, "quiet", true, true},
		{"not asked for", flags | xlf5Level, "quiet", false, false},
		{"the kernel does not know them", flags, "quiet", true, false},
		{"the kernel knows, and was built without", flags | 1<<5, "quiet", true, false},
		{"no5lvl", flags | xlf5Level, "quiet no5lvl", true, false},
	} {
		ram := newRAM(t, 256<<20)
		s, f, err := Load(ram, Config{Kernel: image(patched(tinyBzImage(), hdrXLoadFlags, c.flags)), CommandLine: c.words, FiveLevels: c.asked, Random: last})
		if err != nil {
			t.Fatal(err)
		}
		root, five := s.CR3, s.CR4&x86.CR4LA57 != 0
		if five {
			root = ram.Load64(mem.Addr(root)) &^ 0xFFF
		}
		if at := walk(ram, root, uint64(f.Physical)); five != c.want || at != uint64(f.Physical) {
			t.Errorf("%s: 5 levels: %v, the kernel is mapped to %#x, want %v, %#x", c.what, five, at, c.want, uint64(f.Physical))
		}
	}
}

func TestKASLROnlyWhereItCanBe(t *testing.T) {
	plain := makeBzImage(gz(tinyVmlinux()))
	damaged := makeBzImage(gz(append(tinyVmlinux(), words(0, 0x91000008, 0, 0, 0x81000010)...)))
	twoLists := makeBzImage(gz(append(tinyVmlinux(), words(0, 0x81000008, 0, 0x81000010)...)))
	for _, c := range []struct {
		what    string
		kernel  []byte
		cmdline string
		phys    mem.Addr
		moved   bool
	}{
		{"a table", tinyBzImage(), "", 62 << 20, true},
		{"a table without inverse relocations (v6.15)", twoLists, "", 62 << 20, true},
		{"nokaslr", tinyBzImage(), "quiet nokaslr", 16 << 20, false},
		{"a word that only begins like nokaslr", tinyBzImage(), "nokaslrx", 62 << 20, true},
		{"mem=", tinyBzImage(), "mem=32M", 16 << 20, true},
		{"no table", plain, "", 16 << 20, false},
		{"a damaged table", damaged, "", 62 << 20, false},
	} {
		_, f, err := Load(newRAM(t, 64<<20), Config{Kernel: image(c.kernel), CommandLine: c.cmdline, Random: last})
		if err != nil || f.Physical != c.phys || (f.Offset != 0) != c.moved {
			t.Errorf("%s: %+v, %v; want at %#x, moved %v", c.what, f, err, c.phys, c.moved)
		}
	}
}

func TestUnknownPayloadDecompressesItself(t *testing.T) {
	p := makeBzImage(bytes.Repeat([]byte("no known compression"), 100))
	ram := newRAM(t, 64<<20)
	s, f, err := Load(ram, Config{Kernel: image(p)})
	if err != nil || f.Protocol != BzImage64 || s.RIP != 0x1000200 || ram.Load64(0x1000400) != le.Uint64([]byte("no known")) {
		t.Errorf("%+v, %v, RIP %#x", f, err, s.RIP)
	}
}

func TestPVHEntry(t *testing.T) {
	note := words(4, 8, notePhys32Entry)
	note = append(append(note, "Xen\x00"...), words(0x1000040, 0)...)
	k := makeELF64(elfX86_64, 0x1000000, seg{kind: elfLoad, phys: 0x1000000, vaddr: kernelMap + 0x1000000, data: []byte("text"), memSize: 4096}, seg{kind: elfNote, data: note})
	ram := newRAM(t, 64<<20)
	s, f, err := Load(ram, Config{Kernel: image(k), CommandLine: "c", RSDP: 0xE0000, Initrd: []*Image{Bytes("a", []byte("abc")), Bytes("b", []byte("def"))}})
	if err != nil {
		t.Fatal(err)
	}
	info := mem.Addr(s.GPR[x86.RBX])
	mod := mem.Addr(ram.Load64(info + 16))
	at := mem.Addr(ram.Load64(mod))
	if f.Protocol != PVH || s.RIP != 0x1000040 || s.CR0 != x86.CR0PE|x86.CR0ET || s.EFER != 0 || s.Seg[x86.CS].Access != 0xC09B {
		t.Errorf("%+v, RIP %#x, CR0 %#x, CS %+v", *f, s.RIP, s.CR0, s.Seg[x86.CS])
	}
	if ram.Load32(info) != startInfoMagic || ram.Load64(info+32) != 0xE0000 || ram.Load32(info+12) != 1 {
		t.Errorf("start info %#x, RSDP %#x, %d modules", ram.Load32(info), ram.Load64(info+32), ram.Load32(info+12))
	}
	if p, _ := ram.Slice(at, 7); string(p) != "abc\x00def" || ram.Load64(mod+8) != 7 {
		t.Errorf("initrd %q of %d bytes", p, ram.Load64(mod+8))
	}
	if m := mem.Addr(ram.Load64(info + 40)); ram.Load64(m+8) != layout.EBDA || ram.Load32(m+16) != layout.RAM {
		t.Errorf("memory map begins with size %#x, type %d", ram.Load64(m+8), ram.Load32(m+16))
	}
}

// multibootText is a kernel's first section: the header and some code.
func multibootText(flags uint32, more ...uint32) []byte {
	const magic = uint32(multibootMagic)
	p := words(append([]uint32{0x90909090, magic, flags, -(magic + flags)}, more...)...)
	return append(p, make([]byte, 64)...)
}

func TestMultiboot(t *testing.T) {
	elfKernel := makeELF32(0x100010, 0x100000, multibootText(mbPageAlign|mbMemory), 8192)
	kludge := multibootText(mbAddresses|mbMemory, 0x100004, 0x100000, 0, 0x102000, 0x100010)
	for name, k := range map[string][]byte{"ELF": elfKernel, "addresses": kludge} {
		t.Run(name, func(t *testing.T) {
			mod := Bytes("mod", []byte("first"))
			mod.Line = "mod with args"
			ram := newRAM(t, 64<<20)
			s, f, err := Load(ram, Config{Kernel: image(k), CommandLine: "-v", Initrd: []*Image{mod, Bytes("second", []byte("2"))}})
			if err != nil {
				t.Fatal(err)
			}
			if f.Protocol != Multiboot || s.RIP != 0x100010 || s.GPR[x86.RAX] != multibootEAX || ram.Load32(0x100004) != multibootMagic {
				t.Errorf("%+v, RIP %#x, RAX %#x", *f, s.RIP, s.GPR[x86.RAX])
			}
			info := mem.Addr(s.GPR[x86.RBX])
			text := func(a uint32) string {
				p, _ := ram.Slice(mem.Addr(a), 64)
				return string(p[:bytes.IndexByte(p, 0)])
			}
			mods := mem.Addr(ram.Load32(info + 24))
			start := ram.Load32(mods)
			if ram.Load32(info+20) != 2 || start != 0x102000 || ram.Load32(mods+4) != start+5 || text(start) != "first" || text(ram.Load32(mods+8)) != "mod with args" {
				t.Errorf("%d modules, the first at %#x: %q", ram.Load32(info+20), start, text(ram.Load32(mods+8)))
			}
			if c := text(ram.Load32(info + 16)); c != "test -v" {
				t.Errorf("command line %q", c)
			}
			if ram.Load32(info+8) != 63<<10 || ram.Load32(mem.Addr(ram.Load32(info+48))) != 20 {
				t.Errorf("mem_upper %d", ram.Load32(info+8))
			}
		})
	}
}

func TestMultibootImageMayBeLow(t *testing.T) {
	ram := newRAM(t, 64<<20)
	low := multibootText(mbAddresses, 0x8004, 0x8000, 0, 0x90000, 0x8010)
	s, _, err := Load(ram, Config{Kernel: image(low), Initrd: []*Image{Bytes("mod", []byte("text"))}})
	if err != nil {
		t.Fatal(err)
	}
	info := mem.Addr(s.GPR[x86.RBX])
	if s.RIP != 0x8010 || ram.Load32(0x8004) != multibootMagic || ram.Load32(mem.Addr(ram.Load32(info+24))) != 1<<20 {
		t.Errorf("RIP %#x, %#x at 0x8004, the module at %#x", s.RIP, ram.Load32(0x8004), ram.Load32(mem.Addr(ram.Load32(info+24))))
	}
}

func TestBadKernelsGetOneClearLine(t *testing.T) {
	good := tinyBzImage()
	big := Bytes("big", make([]byte, 65<<20))
	for _, c := range []struct {
		what   string
		kernel []byte
		config Config
		want   string
	}{
		{"empty", nil, Config{}, "empty"},
		{"text", []byte(strings.Repeat("no kernel\n", 100)), Config{}, "not a kernel"},
		{"truncated in the header", good[:0x220], Config{}, "truncated"},
		{"truncated in the payload", good[:len(good)-100], Config{}, "truncated"},
		{"32-bit", patched(good, hdrXLoadFlags, 0, 0), Config{}, "32-bit"},
		{"an old protocol", patched(good, hdrVersion, 0x04, 2), Config{}, "too old"},
		{"damaged", patched(good, len(good)-40, 1, 2, 3, 4, 5), Config{}, "payload: gzip"},
		{"a payload that is no ELF", makeBzImage(gz(make([]byte, 5000))), Config{}, "not an ELF"},
		{"an ELF for ARM", makeELF64(183, 0, seg{kind: elfLoad, data: []byte("x")}), Config{}, "another architecture"},
		{"an ARM Image", patched(make([]byte, 4096), 0x38, 'A', 'R', 'M', 0x64), Config{}, "another architecture"},
		{"a 32-bit ELF", makeELF32(0x100000, 0x100000, []byte("x"), 1), Config{}, "32-bit ELF"},
		{"a truncated ELF", makeELF64(elfX86_64, 0, seg{kind: elfLoad, sizeOnlyHeader: 1 << 20}), Config{}, "truncated"},
		{"an ELF too large", makeELF64(elfX86_64, 0x1000000, seg{kind: elfLoad, phys: 0x1000000, data: []byte("x"), memSize: 60 << 20}), Config{}, "no room"},
		{"linked beyond all addresses", patched(makeBzImage([]byte("unknown")), hdrPreferred, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF), Config{}, "no room"},
		{"an initrd too large", good, Config{Initrd: []*Image{big}}, "the initrd is 65 MiB, guest memory 64 MiB: use --memory 256M"},
		{"a kernel and an initrd too large", good, Config{Initrd: []*Image{Bytes("i", make([]byte, 48<<20))}}, "use --memory 128M"},
		{"a long command line", good, Config{CommandLine: strings.Repeat("x", 2048)}, "2048 bytes, this kernel takes 2047"},
		{"multiboot with unknown features", multibootText(1 << 5), Config{}, "features 0x20"},
		{"multiboot without ELF", multibootText(0), Config{}, "not an ELF"},
		{"multiboot at 0", multibootText(mbAddresses, 4, 0, 0, 0, 16), Config{}, "linked for address"},
		{"multiboot over its information", multibootText(mbAddresses, 0x8F004, 0x8F000, 0, 0x90001, 0x8F010), Config{}, "linked for address"},
	} {
		c.config.Kernel = image(c.kernel)
		s, _, err := Load(newRAM(t, 64<<20), c.config)
		if s != nil || err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want %q", c.what, err, c.want)
		}
	}
}

func TestSuggestedMemoryIsBounded(t *testing.T) {
	for n, want := range map[uint64]string{1: "64M", 65 << 20: "128M", 1 << 30: "1G", 1<<30 + 1: "2G", 1<<64 - 1: "1073741824G"} {
		if got := enough(n); got != want {
			t.Errorf("enough(%#x) = %s, want %s", n, got, want)
		}
	}
}

func TestFilesThatCannotBeKernels(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		dir:                          "is a directory",
		"/dev/null":                  "not a regular file",
		filepath.Join(dir, "absent"): "no such file",
	} {
		if _, err := Open("kernel", path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

func TestOpenInitrdTakesAList(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a,b"), filepath.Join(dir, "c")
	for _, p := range []string{a, b} {
		if err := os.WriteFile(p, []byte(p), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := OpenInitrd(strings.ReplaceAll(a, ",", ",,") + "," + b + " -x 1")
	if err != nil || len(all) != 2 || all[0].Name != a || all[1].Name != b || all[1].Line != b+" -x 1" {
		t.Fatalf("%v, %+v", err, all)
	}
	for _, im := range all {
		im.Close()
	}
}
