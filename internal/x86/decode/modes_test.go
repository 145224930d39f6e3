package decode_test

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/x86/decode"
)

// TestObjdumpAgreesInAllModes lays out every opcode with prefixes and a choice of ModRM bytes, in 16-, 32- and 64-bit code:
// where both know the instruction, length and mnemonic must be the same.
func TestObjdumpAgreesInAllModes(t *testing.T) {
	objdump, err := exec.LookPath("objdump")
	if err != nil {
		t.Fatal("objdump is missing (Debian: apt-get install binutils)")
	}
	for _, m := range []struct {
		mode decode.Mode
		args []string
	}{
		{decode.Mode16, []string{"-m", "i8086", "-M", "i8086,intel"}},
		{decode.Mode32, []string{"-m", "i386", "-M", "i386,intel"}},
		{decode.Mode64, []string{"-m", "i386:x86-64", "-M", "x86-64,intel,intel64"}},
	} {
		t.Run(strconv.Itoa(int(m.mode)*8), func(t *testing.T) {
			code := everyOpcode(m.mode)
			file := filepath.Join(t.TempDir(), "code")
			if err := os.WriteFile(file, code, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(objdump, append([]string{"-D", "-w", "-b", "binary", file}, m.args...)...).Output()
			if err != nil {
				t.Fatal(err)
			}
			compareSlots(t, m.mode, code, out)
		})
	}
}

// slot is the distance of the laid-out instructions; NOPs fill it, so that objdump finds its feet again.
const slot = 32

func everyOpcode(mode decode.Mode) []byte {
	rng := rand.New(rand.NewPCG(1, uint64(mode)))
	prefixes := [][]byte{nil, {0x66}, {0x67}, {0xF3}, {0xF2}}
	if mode == decode.Mode64 {
		prefixes = append(prefixes, []byte{0x48}, []byte{0x66, 0x41}, []byte{0xF3, 0x4C})
	}
	var out []byte
	for _, p := range prefixes {
		for _, m := range [][]byte{nil, {0x0F}, {0x0F, 0x38}, {0x0F, 0x3A}} {
			for op := range 256 {
				for range 10 {
					in := append(append(append([]byte{}, p...), m...), byte(op))
					for len(in) < decode.MaxLen {
						in = append(in, byte(rng.Uint32()))
					}
					for len(in) < slot {
						in = append(in, 0x90)
					}
					out = append(out, in...)
				}
			}
		}
	}
	return append(out, everyVex(mode, rng)...)
}

// everyVex lays out VEX instructions: each map, prefix, length, W and opcode.
func everyVex(mode decode.Mode, rng *rand.Rand) []byte {
	var out []byte
	for i := range 4 * 4 * 2 * 2 * 256 {
		opmap, pp, l, w, op := byte(i>>12)&3, byte(i>>10)&3, byte(i>>9)&1, byte(i>>8)&1, byte(i)
		for n := range 2 {
			vvvv := byte(15)
			if n > 0 {
				vvvv = byte(rng.Uint32())&15 | 8
			}
			rxb := byte(rng.Uint32()) & 0xE0
			if mode != decode.Mode64 {
				rxb |= 0xC0 // else it is LES
			}
			in := []byte{0xC4, rxb | opmap, w<<7 | vvvv<<3 | l<<2 | pp, op}
			if opmap == 1 && w == 0 && n&1 != 0 {
				in = []byte{0xC5, rxb&0x80 | vvvv<<3 | l<<2 | pp, op}
				if mode != decode.Mode64 {
					in[1] |= 0xC0
				}
			}
			for len(in) < decode.MaxLen {
				in = append(in, byte(rng.Uint32()))
			}
			for len(in) < slot {
				in = append(in, 0x90)
			}
			out = append(out, in...)
		}
	}
	return out
}

func compareSlots(t *testing.T, mode decode.Mode, code, out []byte) {
	n, bad := 0, 0
	for _, line := range bytes.Split(out, []byte("\n")) {
		f := strings.SplitN(string(line), "\t", 3)
		if len(f) != 3 {
			continue
		}
		at, err := strconv.ParseUint(strings.Trim(f[0], " :"), 16, 64)
		if err != nil || at%slot != 0 {
			continue
		}
		raw, _ := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(f[1]), " ", ""))
		want := plainMnemonic(f[2])
		if strings.Contains(f[2], "(bad)") || want == "" || newer(f[2]) {
			continue
		}
		in, err := decode.Decode(code[at:at+slot], mode, decode.AllFeatures)
		if err == decode.ErrUD && len(raw) > 3 && raw[0]|1 == 0xC5 && !looseVex(want) {
			if bad++; bad < 60 {
				t.Errorf("% x: undefined; objdump says %q", raw, f[2])
			}
		}
		if err != nil || in.Op == decode.FWAIT { // objdump sees FWAIT FNSTCW as one FSTCW
			continue
		}
		n++
		if int(in.Len) != len(raw) || !sameMnemonic(strings.ToLower(in.Mnemonic()), want) {
			if bad++; bad < 60 {
				t.Errorf("% x: %q, length %d; objdump says %q, length %d", raw, in.String(), in.Len, f[2], len(raw))
			}
		}
	}
	t.Logf("%d instructions, %d differ", n, bad)
}

// looseVex tells whether objdump takes what processors do not: it ignores VEX.pp of VZEROUPPER, VLDMXCSR and VSTMXCSR.
func looseVex(name string) bool {
	return strings.HasPrefix(name, "vzero") || strings.HasSuffix(name, "mxcsr")
}
