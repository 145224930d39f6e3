// Package event takes samples of the host's own threads: perf_event_open(2).
package event

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/perf/data"
)

// A Config says of whom samples are taken, and how often.
type Config struct {
	Hz     int   // samples a second of each CPU that works
	PIDs   []int // processes, with the threads that they will have; none: the whole host
	Chains bool  // with call chains, by frame pointers (the kernel follows them)
	Pages  int   // of each CPU's buffer: a power of two; 0: 128
}

// A Session takes samples from Open to Close. It belongs to one goroutine.
type Session struct {
	// Event is what the samples are taken by, as perf names it: "cycles" where there is a PMU that this user may use, else "cpu-clock".
	Event string
	// Kernel is whether the kernel's part of the samples is there: perf_event_paranoid(2) may forbid it.
	Kernel bool

	rings   []*ring // one a CPU
	fds     []int
	parse   *data.Reader
	record  data.Record
	scratch []byte
}

// ErrForbidden is returned where this user may not take samples, with what would permit it.
var ErrForbidden = errors.New("the kernel does not let this user take samples")

const defaultPages = 128

// sampleType is what each sample holds.
const sampleType = data.SampleIdentifier | data.SampleIP | data.SampleTID | data.SampleTime | data.SampleCPU | data.SamplePeriod

// sources are tried in turn. A PMU's cycles leave a guest's out: those are the guest's samples.
var sources = []struct {
	name   string
	kind   uint32
	config uint64
	guest  uint64
}{
	{"cycles", unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_CPU_CYCLES, unix.PerfBitExcludeGuest},
	{"cpu-clock", unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_CPU_CLOCK, 0},
}

// Open begins. Of processes that end meanwhile nothing is said.
func Open(c Config) (*Session, error) {
	if c.Hz <= 0 {
		return nil, fmt.Errorf("samples at %d Hz", c.Hz)
	}
	if c.Pages == 0 {
		c.Pages = defaultPages
	}
	if c.Pages < 0 || c.Pages&(c.Pages-1) != 0 {
		return nil, fmt.Errorf("a buffer of %d pages: not a power of two", c.Pages)
	}
	var err error
	for _, source := range sources {
		for _, kernel := range []bool{true, false} {
			s := &Session{Event: source.name, Kernel: kernel}
			attr := s.attr(c, source.kind, source.config)
			attr.Bits |= source.guest
			if err = s.open(c, attr); err == nil {
				return s, nil
			}
			s.Close()
			if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
				break // without the kernel it is not there either
			}
		}
	}
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("%w (CAP_PERFMON, or kernel.perf_event_paranoid=%s and lower)", ErrForbidden, needed(c))
	}
	return nil, fmt.Errorf("perf_event_open: %w", err)
}

// needed is the highest perf_event_paranoid that permits it (Documentation/admin-guide/sysctl/kernel.rst).
func needed(c Config) string {
	if len(c.PIDs) == 0 {
		return "0"
	}
	return "2"
}

// attr says what is wanted, and lets records be parsed accordingly.
func (s *Session) attr(c Config, kind uint32, config uint64) *unix.PerfEventAttr {
	a := &unix.PerfEventAttr{
		Type: kind, Config: config, Size: unix.PERF_ATTR_SIZE_VER5, Sample: uint64(c.Hz), Sample_type: sampleType, Clockid: unix.CLOCK_MONOTONIC,
		Bits: unix.PerfBitDisabled | unix.PerfBitFreq | unix.PerfBitInherit | unix.PerfBitMmap | unix.PerfBitMmap2 | unix.PerfBitComm | unix.PerfBitCommExec |
			unix.PerfBitTask | unix.PerfBitSampleIDAll | unix.PerfBitUseClockID | unix.PerfBitExcludeHv,
	}
	if c.Chains {
		a.Sample_type |= data.SampleCallchain
	}
	if !s.Kernel {
		a.Bits |= unix.PerfBitExcludeKernel | unix.PerfBitExcludeCallchainKernel
	}
	s.parse = data.Live(data.Attr{Type: kind, Config: config, Period: uint64(c.Hz), Freq: true, SampleType: a.Sample_type, Flags: a.Bits, Name: s.Event})
	return a
}

// open makes an event of each thread on each CPU, all of a CPU's with one buffer, and lets them run.
func (s *Session) open(c Config, attr *unix.PerfEventAttr) error {
	cpus, err := online()
	if err != nil {
		return err
	}
	tids := []int{-1}
	if len(c.PIDs) > 0 {
		if tids = threads(c.PIDs); len(tids) == 0 {
			return unix.ESRCH
		}
	}
	for _, cpu := range cpus {
		var to *ring
		for _, tid := range tids {
			fd, err := unix.PerfEventOpen(attr, tid, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
			if errors.Is(err, unix.ESRCH) {
				continue // the thread ended
			}
			if err != nil {
				return err
			}
			s.fds = append(s.fds, fd)
			if to != nil {
				if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_SET_OUTPUT, to.fd); err != nil {
					return err
				}
				continue
			}
			if to, err = newRing(fd, c.Pages); err != nil {
				return err
			}
			s.rings = append(s.rings, to)
		}
	}
	if len(s.fds) == 0 {
		return unix.ESRCH
	}
	for _, fd := range s.fds {
		if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_ENABLE, 0); err != nil {
			return err
		}
	}
	return nil
}

// Read gives what has come since, each CPU's in the order of time. A record is valid until the function returns.
// Call it some times a second: a full buffer makes the kernel count what it drops (data.RecordLost).
func (s *Session) Read(do func(*data.Record)) error {
	for _, r := range s.rings {
		if err := r.read(&s.scratch, func(raw []byte) error {
			if err := s.parse.Parse(raw, &s.record); err != nil {
				return err
			}
			do(&s.record)
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// Close ends it. What has not been read is gone.
func (s *Session) Close() error {
	var err error
	for _, r := range s.rings {
		err = errors.Join(err, r.close())
	}
	for _, fd := range s.fds {
		err = errors.Join(err, unix.Close(fd))
	}
	s.rings, s.fds = nil, nil
	return err
}

// threads lists those of processes.
func threads(pids []int) (tids []int) {
	for _, pid := range pids {
		all, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		for _, path := range all {
			if tid, err := strconv.Atoi(filepath.Base(path)); err == nil {
				tids = append(tids, tid)
			}
		}
	}
	slices.Sort(tids)
	return slices.Compact(tids)
}

// online lists the host's CPUs that work.
func online() ([]int, error) {
	const file = "/sys/devices/system/cpu/online"
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return []int{0}, nil // a kernel for one CPU
	}
	if err != nil {
		return nil, err
	}
	cpus, err := parseList(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return cpus, nil
}

// maxCPUs is Linux's own limit (CONFIG_NR_CPUS of x86).
const maxCPUs = 8192

// parseList reads the kernel's way to write sets: 0-3,8.
func parseList(s string) (list []int, err error) {
	for _, part := range strings.Split(s, ",") {
		first, last, many := strings.Cut(part, "-")
		from, err := strconv.Atoi(first)
		if err != nil {
			return nil, err
		}
		to := from
		if many {
			if to, err = strconv.Atoi(last); err != nil {
				return nil, err
			}
		}
		if from < 0 || to < from || to >= maxCPUs {
			return nil, fmt.Errorf("CPUs %q", part)
		}
		for i := from; i <= to; i++ {
			list = append(list, i)
		}
	}
	return list, nil
}
