// Package limit holds back who asks too often: token buckets per user, client or address, with the settings, headers and
// answers of Spring Cloud Gateway's RequestRateLimiter (X-RateLimit-Remaining, -Replenish-Rate, -Burst-Capacity and
// -Requested-Tokens on every answer, 429 when the bucket is empty, a refused request costs nothing).
//
// It differs in what it does without an answer: it never fails open. A request without a key is refused, and when there are
// more keys than there is room for, those without room share one bucket. Only full buckets are ever forgotten, which changes
// nothing, so no key gets more than burst + rate * t in any time t. Buckets live in this process and are never shared with another relay.
package limit
