// Package ca is the certificate authority: it decides who may have which certificate and issues it, keeps the record of
// every certificate, judges client certificates, and revokes them. Join tokens and operators live here too.
//
// Every certificate takes the same way (house.md, flow 1): names from policy, never from the request; the exact bytes to
// be signed are checked against what was decided; a durable audit intent; the signature, in memory; one Apply that makes
// record, index, key record and the used join token durable together; the audit event; only then the answer.
//
// The package never takes a name, a lifetime or a usage from a certificate request, never signs bytes that it has not
// checked, never returns a certificate that is not recorded, and never treats an absent record as a permission. It
// serves no HTTP and holds no private key: those stay in the keyring.
package ca
