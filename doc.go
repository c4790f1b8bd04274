// Package countersign holds the words that every other package shares: who somebody is ([ID], [Caller]), what went
// wrong ([Error], [Code]) and who may call whom ([Policy]).
//
// It never parses a document, never reads a clock, a file or the network, and imports nothing of ours, so that users of
// the public SDKs ([github.com/countersign/countersign/sts/verify]) pay for nothing else.
package countersign
