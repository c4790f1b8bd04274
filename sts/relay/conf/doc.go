// Package conf reads YAML configuration strictly and tells all its faults at once, each with line, column, key and, where
// there is one, a hint.
//
// [Read] fills a struct by its `yaml` tags: every key is known, stands once and has a value of the right kind. Checks of what
// the values mean are the caller's, and use [Doc.Check], which knows where each key stands.
//
// It never opens a file that the configuration names, never follows a YAML alias, reads exactly one document of at most 1 MiB,
// and never takes a number for a duration or a size: both have units.
package conf
