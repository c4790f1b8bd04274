package main

import "strings"

// The keys of these policies; public ones, but where a fault puts more into them.
const (
	clusterKey = `{"kty":"EC","crv":"P-256","kid":"k8s-1","alg":"ES256","use":"sig","x":"0c5pPtXDaQF-gPxpOmqI3PzU59ckrB7W6R50QkvDxrw","y":"M4TUnhdB585IzoNnrybU96vGLTnDt_kX15G9CtlAN4Y"}`
	serviceKey = `{"kty":"OKP","crv":"Ed25519","kid":"reports-1","alg":"EdDSA","x":"qar07az9dEMkTGHuLR1qQBuJ9RDAV-3vkjFNRZjhr90"}`
)

// keySet is a JWK set as it stands in a document.
func keySet(keys ...string) string { return `'{"keys":[` + strings.Join(keys, ",") + `]}'` }

// brokenWorkloads are issuers that prove services, and say more or less than that.
func brokenWorkloads() []brokenPolicy {
	const last = "    carry: [email, tenant]\n"
	issuer := func(text, msg string) brokenPolicy {
		return brokenPolicy{last, last + "  - {name: k8s, use: workloads, issuer: \"https://k8s.example\", " + text + "}\n", msg}
	}
	keys := func(set, msg string) brokenPolicy { return issuer("jwks_file: §"+set, msg) }
	with := func(key, member string) string { return strings.TrimSuffix(key, "}") + "," + member + "}" }
	return []brokenPolicy{
		issuer("tokens: §[access]", "no meaning for an issuer of workloads"), issuer("scopes: §[a]", "no meaning for an issuer of workloads"),
		issuer("scope_claim: §scp", "no meaning for an issuer of workloads"), issuer("subject: §keep", "no meaning for an issuer of workloads"),
		issuer("carry: §[a]", "no meaning for an issuer of workloads"),
		issuer("jwks_file: "+keySet(clusterKey)+", jwks_uri: §\"https://k8s.example/jwks\"", "stands beside `jwks_file`"),
		keys("[]", "must be a text"), keys("'{'", "not JSON"), keys("'{}'", `no array "keys"`), keys(keySet(), "no key that can verify"),
		keys(keySet(clusterKey, clusterKey), "two keys have the kid"), keys(keySet(with(clusterKey, `"use":"sig"`)), "stands twice"),
		keys(keySet(with(clusterKey, `"d":"AAAA"`)), `private member "d"`), keys(keySet(clusterKey, `{"kty":"oct","k":"AAAA"}`), "symmetric"),
		keys(keySet(strings.Replace(clusterKey, "ES256", "HS256", 1)), "can't be for the algorithm"), keys(keySet(strings.Replace(clusterKey, "0c5p", "0c5q", 1)), "broken"),
		keys(keySet(strings.Replace(clusterKey, `"sig"`, `"enc"`, 1)), "no key that can verify"),
		keys(keySet(strings.Replace(clusterKey, `"kid":"k8s-1",`, "", 1), serviceKey), "has no kid"),
	}
}

// brokenProofs are services that would be proved by the wrong token or key, by several services', or by none.
func brokenProofs() []brokenPolicy {
	service := func(text, msg string) brokenPolicy {
		return brokenPolicy{"services:\n", "  - {name: k8s, use: workloads, issuer: \"https://k8s.example\"}\nservices:\n  - {name: batch, " + text + "}\n", msg}
	}
	enrol := func(text, msg string) brokenPolicy { return service("enrol: ["+text+"]", msg) }
	keys := func(set, msg string) brokenPolicy { return service("client_keys: {jwks_file: §"+set+"}", msg) }
	without := func(member string) string { return keySet(strings.Replace(serviceKey, member+",", "", 1)) }
	return []brokenPolicy{
		service("enrol: §[]", "is empty"), service("enrol: §k8s", "must be a list"), enrol("§k8s", "must be a mapping"),
		enrol("§{issuer: k8s}", "the subject is missing"), enrol("§{subject: a}", "the issuer is missing"), enrol("{issuer: §k9s, subject: a}", "there is no issuer"),
		enrol("{issuer: §idp, subject: a}", "prove no service"), enrol("{issuer: k8s, subject: §''}", "the subject is empty"), enrol("{issuer: k8s, subject: §7}", "must be a text"),
		enrol("{issuer: k8s, subject: §"+strings.Repeat("a", 256)+"}", "256 bytes"), enrol(`{issuer: k8s, subject: §"a\u0001"}`, "do not print"),
		enrol("{issuer: k8s, subject: a, §audience: b}", "has no key `audience`"), enrol("{issuer: k8s, §issuer: k8s, subject: a}", "occurs twice"),
		enrol("{issuer: k8s, subject: a}, {issuer: k8s, subject: §a}", "proves a service already"),
		service("enrol: [{issuer: k8s, subject: a}]}\n  - {name: other, enrol: [{issuer: k8s, subject: §a}]", "proves a service already"),
		service("accepts: [{issuer: §k8s, audiences: [a]}]", "no subject tokens"),

		service("client_keys: §{}", "names no keys"), service("client_keys: §[]", "must be a mapping"), service("client_keys: {§jwks_uri: \"https://a.example\"}", "has no key `jwks_uri`"),
		service("client_keys: §"+keySet(serviceKey), "must be a mapping"),
		keys("[]", "must be a text"), keys("'{}'", `no array "keys"`), keys(keySet(), "no key that can verify"), keys(without(`"kid":"reports-1"`), "no kid"), keys(without(`"alg":"EdDSA"`), "no alg"),
		keys(keySet(serviceKey, strings.Replace(serviceKey, "reports-1", "reports-2", 1)), "stands twice"),
		keys(keySet(serviceKey, strings.Replace(clusterKey, `"sig"`, `"enc"`, 1)), "can't verify assertions"),
		keys(keySet(strings.Replace(serviceKey, `"x"`, `"d":"AAAA","x"`, 1)), `private member "d"`),
		service("client_keys: {jwks_file: "+keySet(serviceKey)+"}}\n  - {name: other, client_keys: {jwks_file: §"+keySet(serviceKey)+"}", "proves another service already"),
	}
}

// brokenConditions are what no call can depend on, and chains of no length that could be.
func brokenConditions() []brokenPolicy {
	const ttl, first = "    ttl: 5m\n", "trust_domain: shop.internal\n"
	when := func(text, msg string) brokenPolicy { return brokenPolicy{ttl, "    when: " + text + "\n", msg} }
	hops := func(text string) brokenPolicy {
		return brokenPolicy{first, "max_hops: §" + text + "\n" + first, "whole number"}
	}
	return []brokenPolicy{
		when("§' '", "is empty"), when("§true", "must be a text"), when("§[a]", "must be a text"), when("§subject.tenant", "it gives a claim as it is"),
		when("true && callr§.name == \"x\"", "there is nothing called `callr.name`"), when("'caller.name §+ 1 == 2'", "`when`"), when("§request.scopes", "`when`"),
		when("'§subject.a.exists(a, subject.b.exists(b, a == b))'", "it may take"), when("'subject.a.matches(subject§.b)'", "the pattern of `matches`"),
		when("'§\""+strings.Repeat("x", 2100)+"\" == caller.name'", "at most"),
		{ttl, "    reenter: §1\n", "true or false"}, {ttl, "    reenter: §[true]\n", "true or false"}, {ttl, "    reenter:§ \n", "true or false"}, {ttl, "    §re-enter: true\n", "has no key `re-enter`"},
		{first, "max_hops: §0\n" + first, "between 1 and 16, not 0"}, {first, "max_hops: §-1\n" + first, "between 1 and 16"},
		hops("'4'"), hops("4.0"), hops("0x4"), hops("[4]"), hops("99999999999999999999"), hops("many"),
	}
}
