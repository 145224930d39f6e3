package acpi

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/machine/layout"
	"vitrine.dev/vitrine/internal/mem"
)

// tables finds what the RSDP leads to, by signature, as an operating system does.
func tables(t *testing.T, im []byte) map[string][]byte {
	t.Helper()
	at := func(a uint64) []byte {
		b := im[a-layout.ACPI:]
		return b[:binary.LittleEndian.Uint32(b[4:])]
	}
	sum := func(b []byte) (s byte) {
		for _, v := range b {
			s += v
		}
		return s
	}
	if string(im[:8]) != "RSD PTR " || sum(im[:20]) != 0 || sum(im[:36]) != 0 {
		t.Fatalf("RSDP %q, sums %d and %d", im[:8], sum(im[:20]), sum(im[:36]))
	}
	all := map[string][]byte{}
	xsdt := at(binary.LittleEndian.Uint64(im[24:]))
	all["XSDT"] = xsdt
	for e := xsdt[36:]; len(e) > 0; e = e[8:] {
		b := at(binary.LittleEndian.Uint64(e))
		all[string(b[:4])] = b
	}
	all["DSDT"] = at(binary.LittleEndian.Uint64(all["FACP"][140:]))
	for sig, b := range all {
		if string(b[:4]) != sig || sum(b) != 0 {
			t.Errorf("%s: signature %q, sum %d", sig, b[:4], sum(b))
		}
	}
	all["FACS"] = at(uint64(binary.LittleEndian.Uint32(all["FACP"][36:])))
	return all
}

func TestTablesLeadFromTheRSDP(t *testing.T) {
	ram, err := mem.New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer ram.Close()
	rsdp, err := Write(ram, 254)
	if err != nil {
		t.Fatal(err)
	}
	im, err := ram.Slice(rsdp, layout.ACPISize)
	if err != nil {
		t.Fatal(err)
	}
	all := tables(t, im)
	if n := bytes.Count(all["DSDT"], []byte("ACPI0007")); n != 254 {
		t.Errorf("%d processors in the DSDT, want 254", n)
	}
	for _, sig := range []string{"FACP", "FACS", "APIC", "HPET", "MCFG", "DSDT"} {
		if all[sig] == nil {
			t.Errorf("no %s", sig)
		}
	}
}

func TestIASLReadsAndRecompilesEveryTable(t *testing.T) {
	iasl, err := exec.LookPath("iasl")
	if err != nil {
		if os.Getenv("VITRINE_TEST_FULL") == "1" {
			t.Fatal("iasl is missing: apt-get install acpica-tools")
		}
		t.Skip("iasl is missing: apt-get install acpica-tools")
	}
	for sig, b := range tables(t, Build(3, 4<<30)) {
		dir := t.TempDir()
		file := filepath.Join(dir, strings.ToLower(sig))
		if err := os.WriteFile(file+".aml", b, 0o644); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"-d", file + ".aml"}, {"-p", file + "2", file + ".dsl"}} {
			out, err := exec.Command(iasl, args...).CombinedOutput()
			if err != nil || bytes.Contains(out, []byte("Error ")) || bytes.Contains(out, []byte("rror(s), 1")) {
				t.Errorf("iasl %s: %v\n%s", args[0], err, out)
			}
			if args[0] == "-p" && !bytes.Contains(out, []byte("0 Errors, 0 Warnings")) && bytes.Contains(out, []byte("Warnings")) {
				t.Errorf("%s: iasl warns:\n%s", sig, out)
			}
		}
	}
}
