// Package keyring keeps the signing keys of the authority: sealed at rest, in a state that is computed from the clock.
//
// Each private key is PKCS#8 DER, sealed with a data key of its own; the data key is sealed under the key encryption
// key (KEK), which never enters the store. Without a KEK the ring is sealed: public halves and states are served, nothing
// is signed. What verifiers are shown ([Ring.Keys]) and what signs ([Ring.Signer]) come from one snapshot behind one
// atomic pointer, so no key ever signs that this node does not publish.
//
// # Rotation
//
// New keys are published at once and sign after the lead. The old keys stop at that instant and verify until the last
// token that they may have signed has expired: signs until + the longest lifetime + 60 s of skew. Every node computes the
// same states from the same times.
//
// A key that has leaked is retired ([Ring.Retire]): it is out of the published keys at once, and its tokens die. The same
// Apply makes another key of its algorithm sign, so that there is no moment without one.
//
// # Order of a change, and its crash points
//
//  1. An audit record with outcome "intent" names the change, its keys and their times. A crash after it leaves an
//     intent without an outcome; nothing has changed.
//  2. One Apply, on condition of every record that it changes, of the KEK and of the ring's head. The head names the
//     change as unsettled. A crash after it leaves the keys in force: their audit record is durable since step 1.
//  3. The snapshot is swapped: the keys are published here; other nodes follow the store.
//  4. An audit record with outcome "ok". A crash after it repeats it, marked as recovered.
//  5. The head is written as settled. [Ring.Run] of any node does steps 4 and 5 for a change left unsettled.
//
// # Keys in tokens
//
// Where [Config].Places says so, keys are made in a token behind a PKCS#11 module and never leave it. Their records hold the
// key's URI in place of the private half, bound to kid and purpose under the KEK as a sealed key is. At start each must be there,
// have the recorded public half and fit it. A token that fails is lost: nothing is signed with its keys until [Ring.Run] has
// opened it anew and found them all. A key that is dropped is destroyed after the Apply that drops it; the head keeps its URI
// until that is done. A crash between making a key and the Apply leaves a key in the token that no record names.
//
// The package never hands out a private key, never makes a key in place of one that it can't unseal, never skips a
// record that it can't read, never signs by itself, never generates keys inside Apply, and never deletes a key of purpose
// [Audit].
package keyring
