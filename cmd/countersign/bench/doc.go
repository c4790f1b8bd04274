// Package bench measures the daemon as its users load it: a real one, as a child process on loopback with the embedded
// store, policy and durable audit on, under mTLS connections that are kept. What a request costs is told in CPU time of
// the daemon, beside what the bare cryptography of the same request costs in the same run: rates depend on what else
// the machine does, these two hardly.
//
// It never measures a daemon that it did not start, and never switches off what production has on, but for the limit of
// requests per identity: one client is the whole load.
package bench
