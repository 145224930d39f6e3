package machine

// The invariant of this file: the word outlives the call, because its caller holds it.

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A processor's goroutine is locked to its thread. A futex lets that very thread sleep; a channel would hand over between two threads at
// each wake-up.
const (
	futexWaitPrivate = 0 | 128
	futexWakePrivate = 1 | 128
)

// futexWait blocks while *w is v. It may return early.
func futexWait(w *atomic.Uint32, v uint32) {
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(w)), futexWaitPrivate, uintptr(v), 0, 0, 0)
}

// futexWake wakes all who wait for *w to change.
func futexWake(w *atomic.Uint32) {
	unix.Syscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(w)), futexWakePrivate, 1<<30)
}
