package difftest

// The pointers given to the kernel here are to arrays of the size it writes or reads: an XSAVE area and siginfo_t.

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

const ptraceGetSigInfo = 0x4202

func ptrace(request, pid int, p unsafe.Pointer) error {
	_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), 0, uintptr(p), 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// maxArea is more than any processor's XSAVE area has.
const maxArea = 1 << 14

// ntXState is the register set of the whole XSAVE area (Linux include/uapi/linux/elf.h).
const ntXState = 0x202

func regset(request, pid int, p []byte) (int, error) {
	v := unix.Iovec{Base: &p[0], Len: uint64(len(p))}
	_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), ntXState, uintptr(unsafe.Pointer(&v)), 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(v.Len), nil
}

// getArea reads pid's XSAVE area into p and gives as much of p as it takes.
func getArea(pid int, p []byte) ([]byte, error) {
	n, err := regset(unix.PTRACE_GETREGSET, pid, p)
	return p[:n], err
}

func setArea(pid int, p []byte) error {
	_, err := regset(unix.PTRACE_SETREGSET, pid, p)
	return err
}

// sigInfo is the si_code and si_addr of the signal that stopped pid.
func sigInfo(pid int) (code int32, addr uint64, err error) {
	var si [128]byte
	err = ptrace(ptraceGetSigInfo, pid, unsafe.Pointer(&si))
	return int32(binary.LittleEndian.Uint32(si[8:])), binary.LittleEndian.Uint64(si[16:]), err
}
