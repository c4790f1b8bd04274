// Package demo runs Countersign's main job on one machine, for real: a daemon, an OIDC issuer and three services as
// separate processes that speak TLS on loopback, and a client app that sends a user's request through them.
//
// It never fakes a step: every certificate, token and refusal comes from the daemon, by the same commands and endpoints
// that anybody uses. It never contacts anything but loopback and leaves neither a process nor a file behind.
package demo
