// Package agent keeps the identity directories of a host fresh, and the programs that use them: on top of ca/mtls, which
// enrols and renews, it runs hooks after a change, looks whether the program serves the new certificate ("verified reload"),
// writes configuration for Spring Boot, serves health, metrics and the status socket, and wraps a child process
// (`countersign run`).
//
// A certificate counts as delivered when the hooks went well and, where `verify` is set, the program served its serial. What
// was delivered is noted in D/agent.json, so that an agent that was killed between renewal and hook runs the hook at its next
// start. A delivery that fails is tried again for ever, with a pause that grows to five minutes, and is an alarm meanwhile.
//
// "Old files kept" means: the version directory that the program was last seen to serve is held by the link D/..kept and
// outlives every renewal, until the program serves a newer one. The new files stay current: they live longer, and a program
// that starts anew reads them.
//
// The package never decides who may have a certificate, never sends a private key anywhere, never runs a shell, never signals
// a process that it can't tell to be the one of the PID file, never listens beyond loopback and Unix sockets, and never exits
// because the authority is away.
package agent
