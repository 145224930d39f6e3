package confinetest

import (
	"os"
	"testing"

	"vitrine.dev/vitrine/internal/confine"
)

func TestMain(m *testing.M) {
	Child(map[string]Rights{
		"nothing": func(string) confine.Rights { return confine.Rights{User: confine.UserOf(os.Getpid())} },
		"code":    func(string) confine.Rights { return confine.Rights{User: confine.UserOf(os.Getpid()), Code: true} },
	})
	os.Exit(m.Run())
}

func TestAProcessWithoutRightsCanDoNothingOnAnyThread(t *testing.T) { Check(t, "nothing") }

func TestCodeIsMadeOnlyByWhoMay(t *testing.T) { Check(t, "code", "code", "data made code") }
