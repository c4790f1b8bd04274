// Package observe goes around every request of the relay: its id, its trace, who asks, the one line in the access log, the
// metrics, and the one place where an error becomes an answer (RFC 9457).
//
// What the layers inside find out about a request (the route, who asks, why it was refused) they write into the [Request] of
// its context; identities are never read from headers. Log and metrics hold route names, never paths, queries, tokens or
// cookies: what a stranger sends is never a label, and stands in no log but his address.
//
// There is no OpenTelemetry here: the relay only has to hand the W3C trace context on, with a span id of its own per hop, and
// to write the ids into its log; it exports no spans, and a tracing SDK would bring exporters and global state for two headers.
package observe
