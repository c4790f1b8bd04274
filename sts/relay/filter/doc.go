// Package filter decides which requests the relay lets through at all, by what they look like: method and path, sizes,
// content types, and, where a route names one, an OpenAPI document. Everything that no route names is refused.
//
// A path is either forwarded as it came or refused; it is never rewritten, so that the application can't see another path
// than the one that was judged. Refusals name the place and the rule, never a value of the request. The package decides
// nothing about who asks: security requirements of an OpenAPI document are not looked at, the relay's scopes are the rule. It
// never opens a file after the start, and nothing over the network.
package filter
