package policy

import (
	"os"
	"strings"
	"testing"
)

// What is nested without end is seen before the parser sees it, which would need a stack for it.
func TestNesting(t *testing.T) {
	for name, c := range map[string]struct {
		doc          string
		line, column int
	}{
		"lists":       {"a: 1\nb: " + strings.Repeat("[", 10_000), 2, 4 + maxNesting},
		"mappings":    {strings.Repeat("{a: ", 10_000), 1, 4*maxNesting + 1},
		"over lines":  {strings.Repeat("[\n", 10_000), maxNesting + 1, 1},
		"blocks":      {"services:\n" + strings.Repeat("- ", 10_000), 2, maxNesting + 1},
		"questions":   {strings.Repeat("? ", 10_000), 1, maxNesting + 1},
		"indentation": {"a:\n" + strings.Repeat(" ", 10_000) + "b: 1\n", 2, maxNesting + 1},
		"deep enough": {strings.Repeat("[", maxNesting) + strings.Repeat("]", maxNesting), 0, 0},
		"one by one":  {strings.Repeat("- [{}, ']']\n", 10_000), 0, 0},
		"a comment":   {"# " + strings.Repeat("-", 1000) + "\n", 0, 0},
	} {
		if line, column := nesting([]byte(c.doc)); line != c.line || column != c.column {
			t.Errorf("%s: %d:%d, want %d:%d", name, line, column, c.line, c.column)
		}
	}
	whole, err := os.ReadFile("testdata/shop.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if line, column := nesting(whole); line != 0 {
		t.Errorf("a good policy: %d:%d", line, column)
	}
}
