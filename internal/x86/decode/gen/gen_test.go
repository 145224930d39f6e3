package main

import (
	"bytes"
	"os"
	"testing"
)

// TestCommittedFilesAreTheTable: who changes table.txt runs go generate.
func TestCommittedFilesAreTheTable(t *testing.T) {
	src, err := os.ReadFile("../table.txt")
	if err != nil {
		t.Fatal(err)
	}
	rows, err := parse(string(src))
	if err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func([]row) ([]byte, error){"ops.go": ops, "tables.go": tables} {
		want, err := make(rows)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile("../" + name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what table.txt makes: run go generate ./internal/x86/decode", name)
		}
	}
}

// TestBadRowsAreErrors: a slip in the table must not pass.
func TestBadRowsAreErrors(t *testing.T) {
	for _, src := range []string{
		"00", "zz X", "0f.00/9 X", "00/r X Qv,Foo", "00/r X - nonsense",
		"00/r A Eb\n00/r B Eb", "00/r A Eb\n00 B -",
	} {
		rows, err := parse(src)
		if err == nil {
			_, err = tables(rows)
		}
		if err == nil {
			t.Errorf("%q: no error", src)
		}
	}
}
