// Package sts decides who may exchange which token for which (RFC 8693) and mints the tokens: [Decide] is the rule as a
// pure function of the policy, [Service] is the token endpoint behind the HTTP layer.
//
// It never speaks HTTP to a client, never believes a request about who sent it, never mints what is wider than the
// subject token allows under the policy, never lets a token out before its audit record is durable, and never takes a
// URL from a token that is not verified. Tokens and keys are in no log, error or record.
package sts
