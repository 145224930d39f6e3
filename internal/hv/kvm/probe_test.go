package kvm

import (
	"os"
	"strings"
	"testing"
)

func TestProbeSaysOneLine(t *testing.T) {
	err := Probe()
	t.Logf("here: %v", err)
	if err != nil && (strings.Contains(err.Error(), "\n") || err.Error() == "") {
		t.Errorf("got %q", err)
	}
	if _, e := os.Stat("/dev/kvm"); e != nil && err == nil {
		t.Error("KVM is good without /dev/kvm")
	}
}
