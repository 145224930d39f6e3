package main

import (
	"os"
	"testing"

	"vitrine.dev/vitrine"
)

// The tests' program is its guests' helpers too.
func TestMain(m *testing.M) {
	vitrine.GuestMain()
	os.Exit(m.Run())
}
