package fpu

import (
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/x86"
)

// An operand is the address of what a stub loads into a vector register and stores from it.
type operand = unsafe.Pointer

// ref makes an operand of a register or of memory. MMX registers are loaded with 8 bytes, all others with 16 or 32; a lone uint64 is an MMX register,
// or what an x87 stub takes.
func ref[T x86.YMM | uint64 | [MemSize]byte](p *T) operand { return operand(p) }

// words is the first n words of an operand, which must have them.
func words(p operand, n int) []uint64 { return unsafe.Slice((*uint64)(p), n) }

// vec is a vector operand other than an MMX register.
func vec(p operand) *x86.YMM { return (*x86.YMM)(p) }

// regs is what a stub gets and gives. stub_amd64.s knows the offsets.
type regs struct {
	dst, src, x0 operand // SI, DI, R8
	ax, cx, dx   uint64
	mxcsr        uint32  // invokeFP: in, what the instruction runs under, all exceptions masked; out, the flags it raised
	x1           operand // R10
}

// invoke runs a stub that neither reads MXCSR nor the x87 state.
//
//go:noescape
func invoke(stub uintptr, r *regs)

// invokeFP runs a stub under r.mxcsr.
//
//go:noescape
func invokeFP(stub uintptr, r *regs)

// invokeX87 loads img (FXSAVE's layout, 16-byte aligned), runs the stub and stores img.
//
//go:noescape
func invokeX87(stub uintptr, r *regs, img *byte)

// An image is room for an FXSAVE area with the alignment it wants, wherever the Go heap puts it.
type image [512 + 15]byte

func (m *image) area() *[512]byte {
	off := -uintptr(unsafe.Pointer(m)) & 15
	return (*[512]byte)(unsafe.Pointer(&m[off]))
}

// codeSize has room for every encoding: some 60,000 with all immediates, of 16 to 64 bytes.
const codeSize = 8 << 20

// code is the page of stubs: one memfd, mapped once to write and once to execute, never both.
// Stubs are only ever added, and nobody has an address before its stub is whole.
var code struct {
	sync.Mutex
	write []byte
	exec  []byte
	used  int
	stubs map[string]uintptr
	err   error
}

// stub returns the address of code that is b and a RET.
func stub(b []byte) (uintptr, error) {
	code.Lock()
	defer code.Unlock()
	if a, ok := code.stubs[string(b)]; ok {
		return a, nil
	}
	if code.exec == nil && code.err == nil {
		code.err = mapCode()
	}
	if code.err != nil {
		return 0, code.err
	}
	n := (len(b) + 1 + 15) &^ 15
	if code.used+n > codeSize {
		return 0, fmt.Errorf("fpu: all %d bytes of stubs are in use", codeSize)
	}
	copy(code.write[code.used:], b)
	code.write[code.used+len(b)] = 0xC3 // RET
	a := uintptr(unsafe.Pointer(&code.exec[code.used]))
	code.stubs[string(b)] = a
	code.used += n
	return a, nil
}

func mapCode() error {
	// Hosts with vm.memfd_noexec refuse a memfd that does not say it is to be executed; kernels before 6.3 do not know the flag.
	const mfdExec = 0x10
	fd, err := unix.MemfdCreate("vitrine-fpu", unix.MFD_CLOEXEC|mfdExec)
	if err != nil {
		fd, err = unix.MemfdCreate("vitrine-fpu", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return fmt.Errorf("fpu: memfd for code: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, codeSize); err != nil {
		return fmt.Errorf("fpu: memfd for code: %w", err)
	}
	w, err := unix.Mmap(fd, 0, codeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("fpu: code, to write: %w", err)
	}
	x, err := unix.Mmap(fd, 0, codeSize, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_SHARED)
	if err != nil {
		_ = unix.Munmap(w)
		return fmt.Errorf("fpu: this host refuses memory that can be executed, which floating point needs (SELinux execmem, a seccomp filter or a noexec policy): %w", err)
	}
	code.write, code.exec, code.stubs = w, x, make(map[string]uintptr)
	return nil
}

// Ready maps the code page, and says what is in the way where a host refuses that. Without a call the first Compile does it.
func Ready() error {
	_, err := stub(nil)
	return err
}
