// Package decompress reads the compressed forms that kernels, their modules and their packages come in.
//
// The forms are told apart by their first bytes. All readers work in a stream and give an error, never a panic, on bad data; how much
// comes out is for the caller to bound.
package decompress

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
	"github.com/ulikunitz/xz/lzma"
)

// ErrFormat says that the first bytes are of no form known here.
var ErrFormat = errors.New("decompress: unknown compression")

// maxWindow bounds the history that a stream may ask for: zstd --ultra -22, as kernels are packed, asks for 128 MiB.
const maxWindow = 128 << 20

// A Format is one compressed form.
type Format struct {
	Name  string // as the tool that makes it is called
	magic string
	open  func(io.Reader) (io.Reader, error)
}

// The magic numbers are those of lib/decompress.c in Linux, and LZMA's from the xz tools' lzma-file-format.txt:
// the properties that every packer writes, and a dictionary of a multiple of 64 KiB.
var formats = []Format{
	{"gzip", "\x1f\x8b", openGzip},
	{"bzip2", "BZh", func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
	{"lzma", "\x5d\x00\x00", openLZMA},
	{"xz", "\xfd7zXZ\x00", openXZ},
	{"lzop", lzopMagic, openLZOP},
	{"lz4", lz4Magic, openLZ4},
	{"zstd", "\x28\xb5\x2f\xfd", openZstd},
}

// Detect gives the form of a file that begins with head, of which 9 bytes are enough.
func Detect(head []byte) (Format, bool) {
	for _, f := range formats {
		if bytes.HasPrefix(head, []byte(f.magic)) {
			return f, true
		}
	}
	return Format{}, false
}

// NewReader reads what is compressed in r, or returns [ErrFormat]. Data after the end of the first stream is an error or is ignored,
// as the form has it.
func NewReader(r io.Reader) (io.Reader, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, _ := b.Peek(9) // a shorter file is of no form, or an error later
	f, ok := Detect(head)
	if !ok {
		return nil, ErrFormat
	}
	d, err := f.open(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name, noEOF(err))
	}
	return &named{d, f.Name}, nil
}

// All reads at most limit bytes of what is compressed in p; more is an error.
func All(p []byte, limit int64) ([]byte, error) {
	r, err := NewReader(bytes.NewReader(p))
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(out)) > limit {
		return nil, fmt.Errorf("decompress: more than %d bytes come out", limit)
	}
	return out, nil
}

// named puts the form's name before an error.
type named struct {
	r    io.Reader
	name string
}

func (n *named) Read(p []byte) (int, error) {
	k, err := n.r.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%s: %w", n.name, err)
	}
	return k, err
}

func openGzip(r io.Reader) (io.Reader, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	return z, nil
}

func openLZMA(r io.Reader) (io.Reader, error) {
	return lzma.ReaderConfig{DictCap: maxWindow}.NewReader(r)
}

func openXZ(r io.Reader) (io.Reader, error) {
	z, err := xz.NewReader(r, maxWindow)
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	return z, nil
}

func openZstd(r io.Reader) (io.Reader, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

// noEOF makes of an end in the middle what it is.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
