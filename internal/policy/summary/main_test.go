package main

import (
	"io"
	"strings"
	"testing"
)

func TestCountsLeavesAndFailedPackages(t *testing.T) {
	const in = `{"Action":"run","Package":"a","Test":"X"}
{"Action":"pass","Package":"a","Test":"X"}
{"Action":"output","Package":"a","Test":"Y","Output":"why\n"}
{"Action":"fail","Package":"a","Test":"Y"}
{"Action":"skip","Package":"a","Test":"Z"}
{"Action":"fail","Package":"a"}
{"Action":"pass","Package":"b","Elapsed":2}
not json
`
	var out strings.Builder
	passed, failed, err := summarise(strings.NewReader(in), &out)
	if passed != 1 || failed != 2 || err != nil {
		t.Errorf("%d passed, %d failed, %v", passed, failed, err)
	}
	for _, want := range []string{"FAIL a Y", "    why", "SKIP a Z", "not json", "2.0 s  b", "1 passed, 2 failed, 1 skipped"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %q", want, out.String())
		}
	}
}

func TestNothingRunIsNothingPassed(t *testing.T) {
	if passed, failed, _ := summarise(strings.NewReader(""), io.Discard); passed != 0 || failed != 0 {
		t.Errorf("%d passed, %d failed", passed, failed)
	}
}
