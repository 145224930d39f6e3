// Package boot puts a guest's kernel into its memory, and says with which registers its first CPU begins.
//
// What the formats ask for is told in Linux's Documentation/arch/x86/boot.rst and zero-page.rst, in Xen's
// public/arch-x86/hvm/start_info.h (PVH), and in the Multiboot Specification 0.6.96.
package boot

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// A Config says what to boot. The RAM that it is loaded into must be as [mem.New] made it: what should be zero is not written.
type Config struct {
	Kernel *Image
	// Initrd is what a Linux kernel gets as its initial RAM disk, one after the other, and a multiboot kernel as its modules.
	Initrd      []*Image
	CommandLine string
	RSDP        mem.Addr // where the ACPI tables' root pointer is; 0 where there is none
	// CacheDir keeps kernels that were decompressed; it is made where it is absent. Empty: nothing is kept.
	CacheDir string
	// Log takes a line on what went wrong without stopping the boot. May be nil.
	Log func(line string)
	// FiveLevels enters a Linux kernel that says it knows them with 5-level page tables (CR4.LA57, which the processor must have), as its own decompressor
	// does where the processor has them, unless the command line says no5lvl.
	FiveLevels bool
	// Random gives a number in [0, n) for KASLR. Nil: the host's randomness.
	Random func(n uint64) uint64
}

// A Protocol is a way to enter a kernel.
type Protocol string

// The protocols.
const (
	Linux64   Protocol = "linux64"      // an uncompressed Linux kernel by the 64-bit boot protocol
	BzImage64 Protocol = "bzimage64"    // a bzImage that decompresses itself, by the 64-bit boot protocol
	PVH       Protocol = "pvh"          // Xen's direct boot, in 32-bit protected mode
	Multiboot Protocol = "multiboot"    // multiboot 1, in 32-bit protected mode
	noEntry   Protocol = "no entry yet" // while an image is being looked at
)

// Facts is what the loader came to know.
type Facts struct {
	Protocol Protocol
	Version  string   // of a bzImage: its release and how it was built, as its header says; else empty
	Packed   string   // the payload's compression, where it was decompressed here
	Physical mem.Addr // where the kernel begins in memory
	Size     uint64   // bytes of memory it takes, with what it zeroes itself
	Virtual  uint64   // where the kernel's first byte is in its own address space, once it runs; 0 if not known
	Offset   uint64   // by how much KASLR moved Virtual
}

// ErrNotKernel says that an image is of no kind that is known here.
var ErrNotKernel = errors.New("not a kernel that can be booted: no x86-64 bzImage, no vmlinux ELF, no multiboot image")

// Load puts the kernel and what belongs to it into ram, and gives CPU 0's state at the kernel's first instruction.
// Errors are one line.
func Load(ram *mem.Memory, c Config) (*x86.State, *Facts, error) {
	if ram.Size() < minRAM {
		return nil, nil, fmt.Errorf("guest memory is %s: at least %s is needed", mib(ram.Size()), mib(minRAM))
	}
	if c.Random == nil {
		c.Random = hostRandom
	}
	if c.Log == nil {
		c.Log = func(string) {}
	}
	l := &loader{Config: c, ram: ram, facts: &Facts{Protocol: noEntry}}
	s, err := l.load()
	if err != nil {
		return nil, nil, fmt.Errorf("kernel %s: %w", c.Kernel.Name, err)
	}
	return s, l.facts, nil
}

// minRAM is what the tables below and a kernel at 1 MiB need at the least.
const minRAM = 2 << 20

// Where the loader's own tables are: all in the first 640 KiB, which kernels keep free until they have read them.
const (
	gdtAddr     mem.Addr = 0x1000
	zeroPage    mem.Addr = 0x7000  // of Linux; PVH's start information
	infoAddr    mem.Addr = 0x8000  // lists that the start information points to, up to pageTables
	pageTables  mem.Addr = 0x10000 // up to cmdlineAddr
	cmdlineAddr mem.Addr = 0x20000 // up to seedAddr
	seedAddr    mem.Addr = 0x30000
)

// headSize is how much of an image is looked at to tell its kind: a bzImage's version text lies within 0x200+0xFFFF.
const headSize = 0x10400

type loader struct {
	Config
	ram   *mem.Memory
	facts *Facts
}

// load tells the kinds apart in the order QEMU's -kernel does: bzImage, multiboot, ELF.
func (l *loader) load() (*x86.State, error) {
	k := l.Kernel
	head := make([]byte, min(k.Size, headSize))
	if err := readFull(k, head, 0); err != nil {
		return nil, err
	}
	if isBzImage(head) {
		h, err := parseSetup(head, k.Size)
		if err != nil {
			return nil, err
		}
		return l.bzImage(h)
	}
	if h, ok := findMultiboot(head); ok {
		return l.multiboot(h)
	}
	if string(head[:min(4, len(head))]) == "\x7fELF" {
		e, err := parseELF(k, k.Size)
		if err != nil {
			return nil, err
		}
		return l.elf(e)
	}
	return nil, notKernel(head)
}

// notKernel says what an image is instead, where that is easily seen.
func notKernel(head []byte) error {
	at := func(off int, magic string) bool {
		return len(head) >= off+len(magic) && string(head[off:off+len(magic)]) == magic
	}
	switch {
	case len(head) == 0:
		return errors.New("the file is empty")
	case at(0x38, "ARM\x64"), at(4, "zimg"):
		return errors.New("a kernel for another architecture; this machine is x86-64")
	case at(0x38, "RSC\x05"):
		return errors.New("a kernel for RISC-V; this machine is x86-64")
	case at(510, "\x55\xaa") && !at(0, "MZ"):
		return errors.New("a boot sector or disk image, not a kernel")
	}
	return ErrNotKernel
}

func hostRandom(n uint64) uint64 {
	var p [8]byte
	rand.Read(p[:]) // never fails (crypto/rand)
	return binary.LittleEndian.Uint64(p[:]) % n
}

// mib is a size as errors give it, rounded up.
func mib(n uint64) string { return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20) }
