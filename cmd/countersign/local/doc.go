// Package local runs an authority of its own and other children of our binary on loopback, for the demo and the
// benchmarks.
//
// It never touches an authority that it did not make, listens nowhere but on loopback, and leaves no child behind.
package local
