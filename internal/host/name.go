package host

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// MaxName is the longest name, in bytes: it is the guest's host name too (63 in a DNS label).
const MaxName = 63

// CheckName says what is wrong with a guest's name. A name begins with a letter or digit, goes on with those and "_", ".", "-",
// and is lower case.
func CheckName(name string) error {
	const also = "_.-"
	ok := name != "" && len(name) <= MaxName && !strings.ContainsRune(also, rune(name[0]))
	for _, c := range name {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.ContainsRune(also, c))
	}
	if !ok {
		return fmt.Errorf("--name %q: a name is 1 to %d of a-z, 0-9, \"_\", \".\" and \"-\", and begins with a letter or digit", name, MaxName)
	}
	return nil
}

// Adjectives and nouns of what one may see in a glass case.
var (
	adjectives = strings.Fields(`amber ancient arctic azure bold brave bright brisk calm clear clever coral crisp dapper deep eager early
		fair fleet fond gentle glad golden grand green happy hidden honest humble ivory jolly keen kind late light lively lucid lucky merry mild
		modest neat nimble noble olive opal pale patient plain polite proud quick quiet rapid rare rosy rustic sage serene shy silent silver
		sleek smart snowy solar steady still sunny swift tidy tiny tranquil upright vivid warm wise witty young`)
	nouns = strings.Fields(`acorn agate amulet anchor arrow atlas badger basalt beacon beaver bell beetle bronze button cameo candle
		canoe cedar chalice chisel cicada clock cobalt comet compass condor copper coral crystal dial dolphin ember falcon fern finch flint
		fossil fox garnet gecko globe goblet hare harp hawk heron ibis jade jasper kettle kite lantern lark lens lily lynx magpie maple marble
		marten mask medal meteor moth newt nickel oak onyx orchid otter owl pearl pebble pine plover prism quartz quill raven ribbon robin ruby
		sable sextant shell sparrow sphinx swan teal tiger topaz tulip urn vase violet walnut willow wren zircon`)
)

func madeUp() string {
	return adjectives[rand.IntN(len(adjectives))] + "-" + nouns[rand.IntN(len(nouns))]
}
