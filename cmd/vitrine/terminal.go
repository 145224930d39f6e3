package main

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// terminalSize is in characters; 0, 0 where f is no terminal.
func terminalSize(f *os.File) (rows, cols int) {
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return int(ws.Row), int(ws.Col)
}

// setRaw makes f pass every key on as it is. With signals kept, Ctrl-C and its like still are signals. The returned function
// restores f; it may be called more than once.
func setRaw(f *os.File, keepSignals bool) (restore func(), err error) {
	fd := int(f.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	raw := *old // termios(3), cfmakeraw
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON
	raw.Iflag &^= unix.ICRNL | unix.INLCR | unix.IGNCR | unix.IXON
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if !keepSignals {
		raw.Lflag &^= unix.ISIG | unix.IEXTEN
		raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP
		raw.Oflag &^= unix.OPOST
	}
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { unix.IoctlSetTermios(fd, unix.TCSETS, old) }), nil
}
