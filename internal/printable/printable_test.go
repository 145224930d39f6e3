package printable

import (
	"strings"
	"testing"
	"unicode"
)

func TestNothingThatATerminalObeysIsLeft(t *testing.T) {
	for in, want := range map[string]string{
		"plain text":              "plain text",
		"\x1b[2Jone\x07":          "?[2Jone?",
		"two\ttabs\n":             "two tabs?",
		"\xff\x9bthree":           "??three",
		"C1 \u009b, cut \xe2\x82": "C1 ?, cut ??",
		"Grüße €":                 "Grüße €",
		"right\u202eleft":         "right?left",
		"":                        "",
	} {
		if got := Text(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestPrintableTextCostsNothing(t *testing.T) {
	s := strings.Repeat("x", 100)
	if n := testing.AllocsPerRun(100, func() { s = Text(s) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzText(f *testing.F) {
	f.Add("\x1b]0;title\x07")
	f.Fuzz(func(t *testing.T, s string) {
		got := Text(s)
		if i := strings.IndexFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%q: got %q", s, got)
		}
		if Text(got) != got {
			t.Errorf("%q changes again", got)
		}
	})
}
