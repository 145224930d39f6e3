package kernel

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
)

var errCPIO = errors.New("the package's archive is damaged")

// unpackCPIO writes what keep wants of a newc archive below root, as unpackDeb does of a Debian package.
func unpackCPIO(r io.Reader, root *os.Root, keep func(string) string) error {
	b := bufio.NewReaderSize(r, 64<<10)
	left := int64(maxPackage)
	for {
		var h [110]byte // magic, then 13 fields of 8 hexadecimal digits
		if _, err := io.ReadFull(b, h[:]); err != nil || string(h[:5]) != "07070" {
			return errCPIO
		}
		var v [13]int64
		for i := range v {
			n, err := strconv.ParseUint(string(h[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				return errCPIO
			}
			v[i] = int64(n)
		}
		mode, size, nameSize := v[1], v[6], v[11]
		if nameSize == 0 || nameSize > 4096 {
			return errCPIO
		}
		name := make([]byte, nameSize+(4-(110+nameSize)%4)%4)
		if _, err := io.ReadFull(b, name); err != nil {
			return errCPIO
		}
		file, _, _ := strings.Cut(string(name), "\x00")
		if file == "TRAILER!!!" {
			_, err := io.Copy(io.Discard, b) // let who writes end
			return err
		}
		if left -= size; left < 0 {
			return fmt.Errorf("more than %d GiB", maxPackage>>30)
		}
		data := &io.LimitedReader{R: b, N: size}
		if to := keep(strings.TrimPrefix(path.Clean("/"+file), "/")); to != "" && mode&0o170000 == 0o100000 {
			if err := writeFile(root, to, data); err != nil {
				return err
			}
			if data.N > 0 {
				if _, err := io.Copy(io.Discard, data); err != nil || data.N > 0 {
					return errCPIO
				}
			}
		}
		if _, err := io.CopyN(io.Discard, b, data.N+(4-size%4)%4); err != nil {
			return errCPIO
		}
	}
}
