// Package printable makes text that a guest chose fit for a line on a terminal.
package printable

import (
	"strings"
	"unicode"
)

// Text replaces each character that a terminal may obey, or that is none, by '?', and a tab by a blank. What is printable already is returned as it is.
func Text(s string) string {
	clean := true
	for i := 0; i < len(s) && clean; i++ {
		clean = s[i] >= 0x20 && s[i] < 0x7F
	}
	if clean {
		return s
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case r == unicode.ReplacementChar || !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, s)
}
