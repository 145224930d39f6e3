package main

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// out writes a byte to a port; the thread needs the kernel's leave.
func out(port uint16, v uint8)

// debugExit ends the machine by its debug-exit port.
func debugExit(v uint8) {
	const port = 0xF4
	runtime.LockOSThread()
	if _, _, err := unix.Syscall(unix.SYS_IOPERM, port, 1, 1); err != 0 {
		fmt.Println("check: ioperm:", err)
		return
	}
	if err := unix.IoctlSetInt(1, unix.TCSBRK, 1); err != nil { // tcdrain: the port does not wait for what the kernel has still to send
		fmt.Println("check: tcdrain:", err)
	}
	out(port, v)
}
