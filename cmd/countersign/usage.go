package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/countersign/countersign"
)

// usageError finds words for what cobra says of flags.
func usageError(cmd *cobra.Command, err error) error {
	help := "see `" + cmd.CommandPath() + " --help`"
	f := &failure{Exit: exitLocal, What: err.Error(), Why: "the flags of `" + cmd.CommandPath() + "` can't be read so", Next: help, err: err}
	var (
		unknown *pflag.NotExistError
		missing *pflag.ValueRequiredError
		invalid *pflag.InvalidValueError
		syntax  *pflag.InvalidSyntaxError
	)
	switch {
	case errors.As(err, &unknown):
		f.Why = fmt.Sprintf("`%s` has no flag --%s", cmd.CommandPath(), unknown.GetSpecifiedName())
		if unknown.GetSpecifiedShortnames() != "" {
			f.Why = fmt.Sprintf("`%s` has no flag -%s", cmd.CommandPath(), unknown.GetSpecifiedName()[:1])
		}
		if near := countersign.Nearest(unknown.GetSpecifiedName(), flagNames(cmd)); near != "" {
			f.Next = "did you mean --" + near + "? " + help
		}
	case errors.As(err, &missing):
		flag := missing.GetFlag()
		f.Why = fmt.Sprintf("--%s is followed by its value: %s", flag.Name, flag.Usage)
		f.Next = fmt.Sprintf("--%s VALUE; %s", flag.Name, help)
	case errors.As(err, &invalid):
		flag := invalid.GetFlag()
		f.What = fmt.Sprintf("--%s: %q is no %s", flag.Name, invalid.GetValue(), kindName(flag.Value.Type()))
		f.Why = fmt.Sprintf("--%s is: %s", flag.Name, flag.Usage)
		f.Next = fmt.Sprintf("give --%s %s; %s", flag.Name, kindName(flag.Value.Type()), help)
	case errors.As(err, &syntax):
		f.Why = "a flag is written --name VALUE, --name=VALUE, or -n for a short one"
	}
	return f
}

// kindName is what a person calls a kind of pflag's.
func kindName(kind string) string {
	switch kind {
	case "int":
		return "whole number"
	case "bool":
		return "true or false"
	}
	return kind
}

func flagNames(cmd *cobra.Command) (names []string) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	return names
}

// unknownCommand suggests the nearest one.
func unknownCommand(cmd *cobra.Command, arg string) error {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	f := &failure{Exit: exitLocal, What: fmt.Sprintf("`%s` has no command %q", cmd.CommandPath(), arg),
		Why: "there are " + strings.Join(names, ", "), Next: "see `" + cmd.CommandPath() + " --help`"}
	if len(names) == 0 {
		f.Why = "it has none"
	}
	if near := countersign.Nearest(arg, names); near != "" {
		f.Next = "did you mean `" + cmd.CommandPath() + " " + near + "`?"
	}
	return f
}

// exactArgs demands these arguments, and says which is missing or too many.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		what, why := "", "it takes no arguments"
		if len(names) > 0 {
			why = "it takes " + strings.Join(names, " and ") + ", and nothing else"
		}
		switch {
		case len(args) < len(names):
			what = fmt.Sprintf("`%s` needs %s", cmd.CommandPath(), strings.Join(names[len(args):], " and "))
		case len(args) > len(names):
			what = fmt.Sprintf("`%s` does not take %q", cmd.CommandPath(), args[len(names)])
		default:
			return nil
		}
		return &failure{Exit: exitLocal, What: what, Why: why, Next: "usage: " + cmd.UseLine()}
	}
}

func noArgs(cmd *cobra.Command, args []string) error { return exactArgs()(cmd, args) }

// upTo allows one argument, or none.
func upTo(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) <= 1 {
			return nil
		}
		return &failure{Exit: exitLocal, What: fmt.Sprintf("`%s` does not take %q", cmd.CommandPath(), args[1]),
			Why: "it takes one " + name + "; one with spaces stands in quotes", Next: "usage: " + cmd.UseLine()}
	}
}

// group is a command that only holds others: alone it shows them, with an unknown one it says so.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short}
	helpOnly(c)
	c.AddCommand(commands...)
	return c
}

func helpOnly(c *cobra.Command) {
	c.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownCommand(cmd, args[0])
		}
		return nil
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// helpCommand is cobra's, but an unknown command is an error here as everywhere.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "help for a command",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil {
				return err
			}
			if len(rest) > 0 && found.HasSubCommands() {
				return unknownCommand(found, rest[0])
			}
			found.InitDefaultHelpFlag()
			return found.Help()
		},
	}
}

// completions gives cobra's own commands the errors of ours.
func completions(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() != "completion" {
			continue
		}
		helpOnly(c)
		for _, shell := range c.Commands() {
			shell.Args = noArgs
		}
	}
}

// outputAsked finds the format in arguments that could not be parsed: their error shall be in that format too.
func outputAsked(args []string) string {
	asked := "table"
	for i, arg := range args {
		value := ""
		switch {
		case arg == "--":
			return asked
		case arg == "-o" || arg == "--output":
			if i+1 < len(args) {
				value = args[i+1]
			}
		case strings.HasPrefix(arg, "--output="):
			value = strings.TrimPrefix(arg, "--output=")
		case strings.HasPrefix(arg, "-o"):
			value = strings.TrimPrefix(strings.TrimPrefix(arg, "-o"), "=")
		}
		if value == "json" || value == "yaml" {
			asked = value
		}
	}
	return asked
}

// checkCount refuses numbers that the daemon would not take; it would read none as its default.
func checkCount(flag string, n int) error {
	if n >= 1 && n <= 1000 {
		return nil
	}
	return &failure{Exit: exitLocal, What: fmt.Sprintf("%s: %d is not from 1 to 1000", flag, n),
		Why: "the daemon gives at most 1000 at a time", Next: flag + " with a number from 1 to 1000; ask again for the rest"}
}
