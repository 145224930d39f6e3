package guest

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// messages makes a log of lines: with "user: " in front not the kernel's.
func messages(text string) (all []Message) {
	for line := range strings.SplitSeq(text, "\n") {
		m := Message{}
		m.Text, _ = strings.CutPrefix(line, "user: ")
		if m.Text != line {
			m.Facility = 1
		}
		all = append(all, m)
	}
	return all
}

func TestTheLastOopsAndPanicAreTheKernelsOwn(t *testing.T) {
	for _, c := range []struct {
		name, log string
		panicked  string
		oops      []string
	}{
		{"all is well", "Linux version 6.1\nBUGs are rare", "", nil},
		{"a program says so", "user: Kernel panic - not syncing: ha\nuser: BUG: ha", "", nil},
		{"an oops", "a\nBUG: kernel NULL pointer dereference, address: 0000000000000000\n#PF: supervisor read access\nOops: 0000 [#1]\nRIP: 0010:f+0x1/0x2\n---[ end trace 0 ]---\nb",
			"", []string{"BUG: kernel NULL pointer dereference, address: 0000000000000000", "#PF: supervisor read access", "Oops: 0000 [#1]", "RIP: 0010:f+0x1/0x2", "---[ end trace 0 ]---"}},
		{"two", "kernel BUG at a.c:1!\n---[ end trace 0 ]---\ngeneral protection fault: 0000 [#2]\n---[ end trace 0 ]---", "",
			[]string{"general protection fault: 0000 [#2]", "---[ end trace 0 ]---"}},
		{"a panic without one", "Kernel panic - not syncing: VFS: Unable to mount root fs\nCPU: 0\n---[ end Kernel panic - not syncing: VFS", "VFS: Unable to mount root fs", nil},
		{"an oops and a panic", "Oops: 1\nRIP: x\nKernel panic - not syncing: Fatal exception\nKernel Offset: disabled", "Fatal exception", []string{"Oops: 1", "RIP: x"}},
	} {
		if panicked, oops := troubles(messages(c.log)); panicked != c.panicked || !slices.Equal(oops, c.oops) {
			t.Errorf("%s: %q and %q, want %q and %q", c.name, panicked, oops, c.panicked, c.oops)
		}
	}
	if _, oops := troubles(messages("Oops: 1\n" + strings.Repeat("more\n", 1000))); len(oops) != maxOops {
		t.Errorf("an oops without an end has %d lines, want %d", len(oops), maxOops)
	}
}

func TestTaintIsToldInLettersAndWords(t *testing.T) {
	letters, says := taints(1<<7 | 1<<9 | 1<<12 | 1<<63)
	if letters != "DWO" || len(says) != 3 || says[1] != "the kernel has warned" {
		t.Errorf("%q, %q", letters, says)
	}
}

func TestMemoryThatIsAvailableIsCountedAsTheKernelDoes(t *testing.T) {
	c := counters{"NR_FREE_PAGES": 1000, "NR_ACTIVE_FILE": 100, "NR_INACTIVE_FILE": 300, "NR_SLAB_RECLAIMABLE_B": 50, "NR_KERNEL_MISC_RECLAIMABLE": 10}
	// 1000 + (400 - min(200, 40)) + (60 - min(30, 40)) - 70
	if got := c.available(40, 70); got != 1320 {
		t.Errorf("%d pages, want 1320", got)
	}
	if got := c.available(40, 1<<40); got != 0 {
		t.Errorf("with a reserve of more than there is: %d pages, want 0", got)
	}
	text, err := json.Marshal(MemInfo{{"MemTotal", 4096}, {"Active(anon)", 0}})
	if want := `{"MemTotal":4096,"Active(anon)":0}`; string(text) != want || err != nil {
		t.Errorf("%s, %v, want %s", text, err, want)
	}
}
