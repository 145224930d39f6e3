package difftest

// The pointers given to the kernel here are to arrays of the size it writes or reads: user_fpregs_struct and siginfo_t.

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

func setFX(pid int, fx *[512]byte) error {
	return ptrace(unix.PTRACE_SETFPREGS, pid, unsafe.Pointer(fx))
}

func getFX(pid int, fx *[512]byte) error {
	return ptrace(unix.PTRACE_GETFPREGS, pid, unsafe.Pointer(fx))
}

// sigInfo is the si_code and si_addr of the signal that stopped pid.
func sigInfo(pid int) (code int32, addr uint64, err error) {
	var si [128]byte
	err = ptrace(ptraceGetSigInfo, pid, unsafe.Pointer(&si))
	return int32(binary.LittleEndian.Uint32(si[8:])), binary.LittleEndian.Uint64(si[16:]), err
}
