package clock

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// timerFD sleeps by a timerfd in a blocking read. The runtime's own timers wait in epoll, whose timeouts are whole milliseconds:
// a guest's short sleeps would all take one.
type timerFD int

func newTimerFD() (timerFD, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("clock: timerfd: %w", err)
	}
	return timerFD(fd), nil
}

func (f timerFD) set(d time.Duration) {
	var it unix.ItimerSpec // zero disarms
	if d >= 0 {
		it.Value = unix.NsecToTimespec(int64(max(d, 1)))
	}
	if err := unix.TimerfdSettime(int(f), 0, &it, nil); err != nil {
		panic("BUG: timerfd_settime: " + err.Error())
	}
}

func (f timerFD) wait() {
	var n [8]byte
	for {
		if _, err := unix.Read(int(f), n[:]); err != unix.EINTR {
			return
		}
	}
}

func (f timerFD) close() { unix.Close(int(f)) }
