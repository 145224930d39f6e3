package kvm

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// KVM's own statistics come from a file that describes itself (Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD, since Linux 5.14).

// A statistic is where a value is.
type statistic struct {
	name   string
	offset int64
}

// stats is an open statistics file.
type stats struct {
	fd   int
	list []statistic
}

const (
	statsHeader = 24 // flags, name size, number, offsets of the id, the descriptions and the values
	statsDesc   = 16 // flags, exponent, size, offset, bucket size; the name follows

	statsMax = 1 << 12 // more than KVM has
)

// openStats opens the statistics of a VM or a CPU. Where KVM has none, there are none.
func openStats(of int) *stats {
	fd, err := ioctl(of, getStatsFD, 0)
	if err != nil {
		return nil
	}
	s := &stats{fd: fd}
	if s.list, err = describe(func(p []byte, at int64) error {
		n, err := unix.Pread(fd, p, at)
		if err == nil && n != len(p) {
			err = fmt.Errorf("%d bytes of %d", n, len(p))
		}
		return err
	}); err != nil {
		unix.Close(fd)
		return nil
	}
	return s
}

// describe lists the values that are one number each; histograms are left out.
func describe(read func(p []byte, at int64) error) ([]statistic, error) {
	le := binary.LittleEndian
	head := make([]byte, statsHeader)
	if err := read(head, 0); err != nil {
		return nil, err
	}
	name, n := int(le.Uint32(head[4:])), int(le.Uint32(head[8:]))
	descs, values := int64(le.Uint32(head[16:])), int64(le.Uint32(head[20:]))
	if n > statsMax || name > statsMax {
		return nil, fmt.Errorf("kvm: %d statistics with names of %d bytes", n, name)
	}
	p := make([]byte, n*(statsDesc+name))
	if err := read(p, descs); err != nil {
		return nil, err
	}
	var list []statistic
	for ; len(p) > 0; p = p[statsDesc+name:] {
		if le.Uint16(p[6:]) != 1 {
			continue
		}
		text, _, _ := bytes.Cut(p[statsDesc:statsDesc+name], []byte{0})
		list = append(list, statistic{string(text), values + int64(le.Uint32(p[8:]))})
	}
	return list, nil
}

// each calls fn with all values that can be read.
func (s *stats) each(fn func(name string, value uint64)) {
	if s == nil {
		return
	}
	var p [8]byte
	for _, st := range s.list {
		if n, err := unix.Pread(s.fd, p[:], st.offset); err == nil && n == len(p) {
			fn("kvm_"+st.name, binary.LittleEndian.Uint64(p[:]))
		}
	}
}

func (s *stats) close() error {
	if s == nil {
		return nil
	}
	return unix.Close(s.fd)
}
