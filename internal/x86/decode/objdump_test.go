package decode_test

import (
	"bufio"
	"encoding/hex"
	"flag"
	"os"
	"os/exec"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/x86/decode"
)

var moreFiles = flag.String("decode.files", "", "programs, parted by spaces, for TestObjdumpAgrees to read too")

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
	files = append(files, strings.Fields(*moreFiles)...)
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
		if err != nil || newer(f[2]) || code[0] == 0x9B && len(code) > 1 || code[0] == 0x62 { // EVEX
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

// newer tells whether objdump's text is an instruction that the table leaves out.
func newer(s string) bool {
	w := plainMnemonic(s)
	switch w {
	case "rdsspq", "rdsspd", "incsspq", "rstorssp", "saveprevssp", "xbegin", "xabort", "xend", "xtest", "sha512", "vmread", "rdpru", "getsec", "encls",
		"serialize", "stgi", "clgi", "pvalidate", "rmpadjust", "tpause", "monitorx", "mwaitx", "tilerelease":
		return true
	}
	for _, p := range []string{"k", "vpdp", "vcvtne", "vbcstne", "vgf2p8", "tile", "ldtile", "sttile", "tdp", "tcmm", "vpmadd52", "cmp", "aadd", "aand", "aor", "axor"} {
		if strings.HasPrefix(w, p) && (p != "cmp" || strings.HasSuffix(w, "xadd")) {
			return true
		}
	}
	fma4 := (strings.HasPrefix(w, "vfm") || strings.HasPrefix(w, "vfnm")) && !strings.ContainsAny(w, "123")
	return strings.HasPrefix(s, "{vex}") || fma4 || strings.HasPrefix(w, "vpermil2")
}

// aliases are objdump's names where they are not the SDM's.
var aliases = map[string]string{
	"movabs": "mov", "sal": "shl", "ud2a": "ud2", "icebp": "int1", "xlatb": "xlat", "iret": "iretd", "data16": "nop",
	"vpclmullqlqdq": "vpclmulqdq", "vpclmulhqhqdq": "vpclmulqdq", "vpclmulhqlqdq": "vpclmulqdq", "vpclmullqhqdq": "vpclmulqdq",
	"pclmullqlqdq": "pclmulqdq", "pclmulhqhqdq": "pclmulqdq", "pclmulhqlqdq": "pclmulqdq", "pclmullqhqdq": "pclmulqdq",
	"bndldx": "nop", "bndstx": "nop", "bndmov": "nop", "bndcl": "nop", "bndcu": "nop", "bndcn": "nop", "bndmk": "nop", "cldemote": "nop",
	"prefetchit0": "nop", "prefetchit1": "nop", "prefetchwt1": "prefetch", "call": "callf", "jmp": "jmpf", "xchg": "nop", "wbnoinvd": "wbinvd", // 66 90
}

func sameMnemonic(got, want string) bool {
	want, _, _ = strings.Cut(want, "(") // fneni(8087 only)
	if got == want || got == aliases[want] {
		return true
	}
	if got == "xchg" && want == "pause" { // F3 41 90: processors exchange
		return true
	}
	// CMPEQPS is CMPPS with its immediate in the name.
	v, w := strings.TrimPrefix(got, "v"), strings.TrimPrefix(want, "v")
	if strings.HasPrefix(v, "cmp") && strings.HasPrefix(w, "cmp") && len(v) == 5 && strings.HasSuffix(w, v[3:]) && len(v)-len(got) == len(w)-len(want) {
		return true
	}
	// Sizes that are, or are not, in the name: popfw, retfq, movs, iret.
	return len(want) == len(got)+1 && strings.HasPrefix(want, got) && strings.ContainsAny(want[len(got):], "wdql") ||
		len(got) == len(want)+1 && strings.HasPrefix(got, want) && strings.ContainsAny(got[len(want):], "bwdq")
}
