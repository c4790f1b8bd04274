package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// everyCommand calls do with each command of the tree, hidden ones included.
func everyCommand(do func(c *cobra.Command, words []string)) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Name() != "__complete" && c.Name() != "__completeNoDesc" { // shells call them
			do(c, strings.Fields(c.CommandPath())[1:])
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	root := (&app{}).command()
	root.InitDefaultHelpCmd()
	walk(root)
}

// Every command, with each wrong flag and argument: what, why and what to do next.
func TestUsageErrors(t *testing.T) {
	seen := 0
	everyCommand(func(c *cobra.Command, words []string) {
		seen++
		wrong := func(args ...string) failure {
			t.Helper()
			return refused(t, exitLocal, slices.Concat(words, args)...)
		}
		wrong("--nosuchthing")
		wrong("-Z")
		wrong("--=")
		wrong("1", "2", "3", "4", "5")
		if c.Args != nil && c.Args(c, nil) != nil {
			wrong()
		}
		c.Flags().VisitAll(func(f *pflag.Flag) { wrongFlag(t, c, f, wrong) })
		for _, sub := range c.Commands() {
			if near := sub.Name() + "x"; sub.IsAvailableCommand() && c.Name() != "demo" {
				if got := wrong(near); !strings.Contains(got.Next, "did you mean `"+c.CommandPath()+" "+sub.Name()+"`") {
					t.Errorf("%q %s: next: %s", words, near, got.Next)
				}
			}
		}
	})
	if seen < 50 {
		t.Errorf("only %d commands: is this test blind?", seen)
	}
	format := runHere(t, "status", "-o", "xml")
	if format.whole(t, exitLocal); !strings.Contains(format.stderr, "-o json") {
		t.Error(format.stderr)
	}
	refused(t, exitLocal, "help", "polcy")
	refused(t, exitLocal, "help", "policy", "aply")
}

func wrongFlag(t *testing.T, c *cobra.Command, f *pflag.Flag, wrong func(...string) failure) {
	t.Helper()
	if f.Value.Type() == "bool" || f.Value.Type() == "int" {
		if got := wrong("--" + f.Name + "=x"); !strings.Contains(got.What, "--"+f.Name) {
			t.Errorf("%s --%s=x: %s", c.CommandPath(), f.Name, got.What)
		}
	}
	if f.NoOptDefVal == "" {
		if got := wrong("--" + f.Name); !strings.Contains(got.Why, "--"+f.Name) {
			t.Errorf("%s --%s: %s", c.CommandPath(), f.Name, got.Why)
		}
	}
	if got := wrong("--" + f.Name + "q"); !f.Hidden && !strings.Contains(got.Next, "did you mean --") {
		t.Errorf("%s --%sq: next: %s", c.CommandPath(), f.Name, got.Next)
	}
}

// The format of an error is the one that was asked for, also where the flags could not be read.
func TestFormatOfUsageErrors(t *testing.T) {
	for _, args := range [][]string{
		{"status", "--bogus", "-o", "json"}, {"-o=json", "status", "--bogus"}, {"-ojson", "nothing"}, {"status", "--bogus", "--output", "json"},
		{"nothing", "--output=json"},
	} {
		if got := runHere(t, args...); got.code != exitLocal || !strings.HasPrefix(got.stderr, `{"exit":1,"error":`) {
			t.Errorf("%q: %d %s", args, got.code, got.stderr)
		}
	}
	for _, args := range [][]string{{"status", "--bogus", "-o"}, {"status", "--bogus", "--", "-o", "json"}} {
		runHere(t, args...).whole(t, exitLocal)
	}
}
