package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/countersign/countersign"
)

// Every command that a document, a code's next step or a help text names is one, with flags that it has: they are what
// people type when something is wrong.
func TestDocumentedCommands(t *testing.T) {
	texts := map[string]string{}
	for _, pattern := range []string{"../../README.md", "../../docs/*.md", "../../docs/adr/*.md", "*.go", "daemon/*.go", "../../sts/*.go", "../../ca/*.go", "../../api/*.go", "../../storage/*/*.go"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatal(pattern, err)
		}
		for _, path := range paths {
			body, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(path, "_test.go") {
				texts[path] = string(body)
			}
		}
	}
	for _, info := range countersign.Codes() {
		texts[string(info.Code)] = "`" + info.Next + "`"
	}
	// A command ends with what can't be a part of it.
	command := regexp.MustCompile("(?:^|[`\"' /])countersign((?: +(?:-{1,2}[a-z][a-z0-9-]*|[a-z][a-z-]*|[A-Z][A-Z-]*))+)")
	seen := 0
	for path, text := range texts {
		for _, quoted := range regexp.MustCompile("`[^`\n]+`|\"[^\"\n]+\"|ExecStart=.*").FindAllString(text, -1) {
			for _, match := range command.FindAllStringSubmatch(quoted, -1) {
				words := strings.Fields(match[1])
				if strings.HasPrefix(strings.Join(words, " "), "audit checkpoint") {
					continue // a word that is signed
				}
				if strings.HasSuffix(path, ".go") && !slices.Contains(commandNames(), words[0]) {
					continue // prose: "countersign serves"
				}
				seen++
				checkCommand(t, path, words)
			}
		}
	}
	if seen < 50 {
		t.Errorf("only %d commands were found: is this test blind?", seen)
	}
}

func commandNames() (names []string) {
	for _, c := range (&app{}).command().Commands() {
		names = append(names, c.Name())
	}
	return names
}

func checkCommand(t *testing.T, path string, words []string) {
	t.Helper()
	root := (&app{}).command()
	root.InitDefaultVersionFlag()
	root.InitDefaultHelpFlag()
	found, rest, err := root.Find(words)
	if err != nil {
		t.Errorf("%s: countersign %s: %v", path, strings.Join(words, " "), err)
		return
	}
	found.InitDefaultHelpFlag()
	for i, word := range rest {
		name, isFlag := strings.CutPrefix(word, "--")
		switch {
		case isFlag && found.Flags().Lookup(name) == nil && found.InheritedFlags().Lookup(name) == nil:
			t.Errorf("%s: countersign %s: there is no flag %s", path, strings.Join(words, " "), word)
		case i == 0 && !strings.HasPrefix(word, "-") && found.HasSubCommands() && word == strings.ToLower(word):
			t.Errorf("%s: countersign %s: there is no command %s", path, strings.Join(words, " "), word)
		}
	}
}
