// Package daemon reads the configuration, initialises a directory, puts the daemon together and runs it: the one place
// where all parts meet.
//
// It never decides who may do what (ca, sts and api do), never calls os.Exit, and never replaces a file that it can't
// read.
package daemon
