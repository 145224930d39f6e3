package boot

import "testing"

// fuzzLoad loads p as a kernel into a small guest: it must come back with a state or an error, and what it says must be in RAM.
func fuzzLoad(t *testing.T, p []byte) {
	ram := newRAM(t, 32<<20)
	s, f, err := Load(ram, Config{Kernel: image(p), CommandLine: "c", Initrd: []*Image{Bytes("i", []byte("initrd"))}, Random: last})
	if (s == nil) == (err == nil) {
		t.Fatalf("state %v, error %v", s, err)
	}
	if err == nil && !ram.Contains(f.Physical, f.Size) {
		t.Errorf("kernel at %#x of %#x is not in RAM", f.Physical, f.Size)
	}
}

func FuzzBzImage(f *testing.F) {
	f.Add(tinyBzImage())
	f.Add(makeBzImage([]byte("unknown")))
	f.Fuzz(fuzzLoad)
}

// FuzzPayload has what a payload decompresses to: the ELF file and the relocation table.
func FuzzPayload(f *testing.F) {
	f.Add(append(tinyVmlinux(), tinyRelocs...))
	f.Add(append(tinyVmlinux(), words(0, 0x81000008, 0, 0x81000010)...))
	f.Fuzz(func(t *testing.T, p []byte) { fuzzLoad(t, makeBzImage(gz(p))) })
}

func FuzzELF(f *testing.F) {
	note := append(append(words(4, 4, notePhys32Entry), "Xen\x00"...), words(0x100000)...)
	f.Add(tinyVmlinux())
	f.Add(makeELF64(elfX86_64, 0x100000, seg{kind: elfLoad, phys: 0x100000, data: []byte("text")}, seg{kind: elfNote, data: note}))
	f.Add(makeELF32(0x100000, 0x100000, multibootText(0), 4096))
	f.Fuzz(fuzzLoad)
}

func FuzzMultiboot(f *testing.F) {
	f.Add(multibootText(mbAddresses, 0x100004, 0x100000, 0, 0x102000, 0x100010))
	f.Add(makeELF32(0x100000, 0x100000, multibootText(mbMemory), 4096))
	f.Fuzz(fuzzLoad)
}
