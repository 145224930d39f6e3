package vitrine_test

import (
	"testing"

	"vitrine.dev/vitrine/internal/confine/confinetest"
)

// Code that runs in the machine's process may make code, and memory that it could share with nobody, and nothing else of all that is tried.
func TestCodeInTheMachinesProcessCanNotOpenSpawnOrConnect(t *testing.T) {
	confinetest.Check(t, "vm", "code", "data made code", "memfd")
}
