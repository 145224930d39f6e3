package decode_test

import (
	"bufio"
	"encoding/hex"
	"os"
	"os/exec"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/x86/decode"
)

// TestObjdumpAgrees disassembles real programs: this test itself, and what else is installed. Lengths and mnemonics must be objdump's.
func TestObjdumpAgrees(t *testing.T) {
	objdump, err := exec.LookPath("objdump")
	if err != nil {
		t.Fatal("objdump is missing (Debian: apt-get install binutils)")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	files := []string{self, "/usr/bin/busybox"}
	if extra := os.Getenv("DECODE_FILES"); extra != "" {
		files = append(files, strings.Fields(extra)...)
	}
	for _, name := range files {
		if _, err := os.Stat(name); err != nil {
			t.Logf("%s is not installed", name)
			continue
		}
		t.Run(name, func(t *testing.T) { compareWithObjdump(t, objdump, name) })
	}
}

func compareWithObjdump(t *testing.T, objdump, name string) {
	cmd := exec.Command(objdump, "-d", "-w", "-M", "intel", name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n, bad := 0, 0
	for sc := bufio.NewScanner(out); sc.Scan(); {
		f := strings.SplitN(sc.Text(), "\t", 3)
		if len(f) != 3 || strings.Contains(f[2], "(bad)") || strings.HasPrefix(f[2], ".") {
			continue
		}
		code, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(f[1]), " ", ""))
		if err != nil || f[2][0] == 'v' || vexOrNewer(f[2]) {
			continue
		}
		n++
		in, err := decode.Decode(code, decode.Mode64, decode.AllFeatures)
		want := plainMnemonic(f[2])
		got := strings.ToLower(in.Mnemonic())
		if err != nil || int(in.Len) != len(code) || !sameMnemonic(got, want) {
			if bad++; bad < 40 {
				t.Errorf("% x: %q, length %d, %v; objdump says %q", code, in.String(), in.Len, err, f[2])
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions, %d differ", n, bad)
	if n < 1000 {
		t.Errorf("only %d instructions read", n)
	}
}

// plainMnemonic takes prefixes and operands off objdump's text.
func plainMnemonic(s string) string {
	for _, w := range strings.Fields(s) {
		switch w {
		case "lock", "rep", "repz", "repnz", "data16", "addr32", "bnd", "notrack", "cs", "ds", "es", "ss", "fs", "gs", "xacquire", "xrelease", "data32", "addr16":
			continue
		}
		if strings.HasPrefix(w, "rex") {
			continue
		}
		w, _, _ = strings.Cut(w, ",")
		return w
	}
	return ""
}

// vexOrNewer tells whether objdump's text is an instruction that the table leaves out.
func vexOrNewer(s string) bool {
	switch plainMnemonic(s) {
	case "andn", "bextr", "blsi", "blsmsk", "blsr", "bzhi", "mulx", "pdep", "pext", "rorx", "sarx", "shlx", "shrx",
		"rdsspq", "rdsspd", "incsspq", "rstorssp", "saveprevssp", "xbegin", "xabort", "xend", "xtest", "sha512", "vmread",
		"kmovb", "kmovw", "kmovd", "kmovq", "kortestb", "kortestw", "kortestd", "kortestq", "ktestb", "ktestd", "ktestq", "kunpckbw", "kunpckdq", "kunpckwd", "rdpru", "getsec", "encls":
		return true
	}
	return s[0] == 'k'
}

// aliases are objdump's names where they are not the SDM's.
var aliases = map[string]string{
	"movabs": "mov", "sal": "shl", "int1": "int1", "ret": "ret", "iretq": "iretq", "fstpnce": "fstp", "ud2a": "ud2",
	"pushw": "push", "cmpeqps": "cmpps", "nopw": "nop", "nopl": "nop", "retw": "ret", "pclmullqlqdq": "pclmulqdq", "pclmulhqhqdq": "pclmulqdq",
	"pclmulhqlqdq": "pclmulqdq", "pclmullqhqdq": "pclmulqdq", "pause": "pause", "icebp": "int1", "leavew": "leave", "sysretl": "sysret",
	"sysretd": "sysret", "sysretq": "sysret", "sysexitd": "sysexit", "rex.w": "", "iretd": "iretd", "iret": "iretd", "retf": "retf", "data16": "nop",
	"movq": "movq", "pushf": "pushf", "fwait": "fwait", "prefetchw": "prefetchw", "xlatb": "xlat", "sysexitq": "sysexit",
}

func sameMnemonic(got, want string) bool {
	if a, ok := aliases[want]; ok {
		want = a
	}
	if got == want {
		return true
	}
	// CMPEQPS is CMPPS with its immediate in the name; CALLF and RETF and JMPF are objdump's call, retf and jmp.
	if strings.HasPrefix(got, "cmp") && strings.HasPrefix(want, "cmp") && len(got) == 5 && strings.HasSuffix(want, got[3:]) {
		return true
	}
	return got == "callf" && want == "call" || got == "jmpf" && want == "jmp"
}
