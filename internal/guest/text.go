package guest

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// printable keeps what a guest wrote from acting on a terminal: what is not a visible character or a blank becomes '?'.
func printable(s string) string {
	clean := true
	for i := 0; i < len(s) && clean; i++ {
		clean = s[i] >= 0x20 && s[i] < 0x7F
	}
	if clean {
		return s
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
