package mem

import (
	"os"
	"strings"
)

// HugeSize is a huge page's.
const HugeSize = 2 << 20

// Huge says what pages a guest's RAM is made of.
type Huge uint8

// What the pages are.
const (
	HugeOff    Huge = iota // small: the host does not let shared memory have huge ones
	HugeAsked              // huge where the kernel finds some: we ask for them
	HugeAlways             // the same, without being asked
	HugePool               // huge, from the pool
)

// ShmemSetting is the file that says whether shared memory may have huge pages (Documentation/admin-guide/mm/transhuge.rst).
const ShmemSetting = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

// shmemHuge is what this host does.
func shmemHuge() Huge {
	text, err := os.ReadFile(ShmemSetting)
	if err != nil {
		return HugeOff
	}
	return parseShmem(string(text))
}

// parseShmem reads a line such as "always within_size advise [never] deny force".
func parseShmem(text string) Huge {
	_, chosen, _ := strings.Cut(text, "[")
	chosen, _, _ = strings.Cut(chosen, "]")
	switch chosen {
	case "always", "within_size", "force":
		return HugeAlways
	case "advise":
		return HugeAsked
	}
	return HugeOff
}

// Huge tells what pages the RAM is made of.
func (m *Memory) Huge() Huge { return m.huge }

// String is one word for each.
func (h Huge) String() string { return [...]string{"off", "asked", "always", "pool"}[h] }
