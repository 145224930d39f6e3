// Package transfer carries a file or a tree as a stream of bytes from one process to another: names of any bytes, modes, times, symbolic links, and
// files with holes as files with holes.
//
// A stream is records. Each begins with its kind; numbers are varints (encoding/binary), strings a length and bytes:
//
//	name    'N' base name of what is sent, first of all
//	dir     'D' path mode mtime
//	file    'F' path mode mtime size, then chunks: length offset bytes, up to a length of 0
//	link    'L' path mtime target
//	failed  'X' reason: the sender could not go on
//	end     'E'
//
// Paths are relative to what is sent, "" is itself, and parents come before their children. Owners do not travel, hard links
// become files of their own, and devices, FIFOs and sockets stay behind.
package transfer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Kinds of records.
const (
	kindName   = 'N'
	kindDir    = 'D'
	kindFile   = 'F'
	kindLink   = 'L'
	kindFailed = 'X'
	kindEnd    = 'E'
)

// Limits of what is accepted.
const (
	maxString = 64 << 10 // of a path, a target or a reason; PATH_MAX is 4096, below a directory more is possible
	maxChunk  = 256 << 10
)

// modeBits are those of st_mode that travel.
const modeBits = 0o7777

var errFormat = errors.New("transfer: what came is no stream of files")

type encoder struct {
	w   *bufio.Writer
	tmp [binary.MaxVarintLen64]byte
}

// Errors of w stay and are Flush's.
func (e *encoder) kind(k byte) { e.w.WriteByte(k) }

func (e *encoder) number(n int64) { e.w.Write(e.tmp[:binary.PutVarint(e.tmp[:], n)]) }

func (e *encoder) string(s string) {
	e.number(int64(len(s)))
	e.w.WriteString(s)
}

type decoder struct{ r *bufio.Reader }

func (d *decoder) kind() (byte, error) { return d.r.ReadByte() }

// number reads one from 0 to limit.
func (d *decoder) number(limit int64) (int64, error) {
	n, err := binary.ReadVarint(d.r)
	if err != nil {
		return 0, cut(err)
	}
	if n < 0 || n > limit {
		return 0, errFormat
	}
	return n, nil
}

// time reads nanoseconds since 1970, which may be negative.
func (d *decoder) time() (int64, error) {
	n, err := binary.ReadVarint(d.r)
	return n, cut(err)
}

func (d *decoder) string() (string, error) {
	n, err := d.number(maxString)
	if err != nil {
		return "", err
	}
	p := make([]byte, n)
	_, err = io.ReadFull(d.r, p)
	return string(p), cut(err)
}

// cut says that an end came too early.
func cut(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("transfer: the stream broke off: %w", io.ErrUnexpectedEOF)
	}
	return err
}
