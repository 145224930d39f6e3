package kvm

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestOpenSaysOneLine(t *testing.T) {
	b, err := Open()
	if b != nil {
		t.Logf("here: stock kernels: %v; TSC %d Hz", b.Stock(), b.TSCHz())
		if e := b.Stock(); e != nil && !errors.Is(e, ErrBroken) {
			t.Errorf("%v is not ErrBroken", e)
		}
	} else {
		t.Logf("here: %v", err)
	}
	if err != nil && (strings.Contains(err.Error(), "\n") || err.Error() == "") {
		t.Errorf("got %q", err)
	}
	if _, e := os.Stat("/dev/kvm"); e != nil && err == nil {
		t.Error("KVM is good without /dev/kvm")
	}
}
