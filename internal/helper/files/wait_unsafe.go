package files

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A guest that reads files asks, waits for the answer and asks again, some 10 µs later. Go's run time takes a thread that waits in a system call for
// one that will wait long: its monitor wakes, polls every 20 µs and hands the thread's place to another, which costs more than most answers. So the one
// thread that answers a guest that asks one thing at a time waits in a call that the run time does not see, and only for hotMicros: after that it
// waits like any other. The run time stops such a thread (for the garbage collector) by a signal, and a receive with a timeout ends at a signal whatever
// SA_RESTART says (signal(7)).

// hotMicros is how long a thread may wait unseen.
const hotMicros = 5000

// setHot readies a socket for receiveHot.
func setHot(fd int) error {
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: hotMicros})
}

// receiveHot receives one packet; 0 bytes are the end. p is not empty.
func receiveHot(fd int, p []byte) (int, error) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), 0, 0, 0)
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
			runtime.Gosched() // whoever sent the signal waits for us
		case unix.EAGAIN:
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); err != nil && err != unix.EINTR {
				return 0, err
			}
		default:
			return 0, e
		}
	}
}
