package countersign

// Code names one way to fail. Codes are stable: scripts, alarms and documents rely on them; a code is never reused.
type Code string

// CodeInfo is a row of the one table of codes.
type CodeInfo struct {
	Code  Code
	Kind  Kind
	OAuth string // the RFC 6749 5.2 / RFC 8693 2.2.2 error at /oauth2/*; "" where it can't occur there
	Title string // what it means, one line, constant
	Next  string // what to do, one line; an Error's own Hint says more where there is one
}

// The codes, by area: 10 the API, 20 certificates, 30 tokens, 40 policy, 50 keys, 60 storage and audit, 70 the services' side.
const (
	CodeInternal         Code = "CS1000"
	CodeNoRoute          Code = "CS1001"
	CodeMethod           Code = "CS1002"
	CodeContentType      Code = "CS1003"
	CodeBody             Code = "CS1004"
	CodeTooLarge         Code = "CS1005"
	CodeParameter        Code = "CS1006"
	CodeNoCredential     Code = "CS1010"
	CodeBadCertificate   Code = "CS1011"
	CodeExpiredPeer      Code = "CS1012"
	CodeRevokedPeer      Code = "CS1013"
	CodeTwoCredentials   Code = "CS1014"
	CodeWrongCredential  Code = "CS1015"
	CodeRole             Code = "CS1016"
	CodeSocketPeer       Code = "CS1017"
	CodeForwarded        Code = "CS1018"
	CodeProxyAlone       Code = "CS1019"
	CodeRateIdentity     Code = "CS1020"
	CodeRateAddress      Code = "CS1021"
	CodeWaiters          Code = "CS1022"
	CodePaced            Code = "CS1023"
	CodeStopping         Code = "CS1030"
	CodeTimeout          Code = "CS1031"
	CodeClock            Code = "CS1032"
	CodeTokensFrozen     Code = "CS1040"
	CodeCertsFrozen      Code = "CS1041"
	CodeFreezeState      Code = "CS1042"
	CodeCSR              Code = "CS2001"
	CodeCSRKey           Code = "CS2002"
	CodeCSRSignature     Code = "CS2003"
	CodeTTL              Code = "CS2004"
	CodeNotInPolicy      Code = "CS2005"
	CodeServiceDisabled  Code = "CS2006"
	CodeJoinToken        Code = "CS2010"
	CodeJoinTokenUsed    Code = "CS2011"
	CodeJoinTokenExpired Code = "CS2012"
	CodeNoCertificate    Code = "CS2020"
	CodeAlreadyRevoked   Code = "CS2021"
	CodeKeyRevoked       Code = "CS2022"
	CodeIssuerExpiring   Code = "CS2030"
	CodeReason           Code = "CS2031"
	CodeNoRollback       Code = "CS2032"
	CodeIssuerInUse      Code = "CS2033"
	CodeRevokedMany      Code = "CS2040"
	CodeOwnRoot          Code = "CS2050"
	CodeOwnIntermediate  Code = "CS2051"
	CodeOwnSuccessor     Code = "CS2052"
	CodeNoRequest        Code = "CS2053"
	CodeNameConstraint   Code = "CS2080"
	CodeKeyType          Code = "CS2081"
	CodeProof            Code = "CS2090"
	CodeProofTime        Code = "CS2091"
	CodeProofAudience    Code = "CS2092"
	CodeProofUsed        Code = "CS2093"
	CodeProofKey         Code = "CS2094"
	CodeClient           Code = "CS3001"
	CodeClientMismatch   Code = "CS3002"
	CodeGrantType        Code = "CS3003"
	CodeTokenRequest     Code = "CS3004"
	CodeTokenType        Code = "CS3005"
	CodeSubjectToken     Code = "CS3010"
	CodeSubjectExpired   Code = "CS3011"
	CodeSubjectAudience  Code = "CS3012"
	CodeSubjectIssuer    Code = "CS3013"
	CodeSubjectKind      Code = "CS3014"
	CodeSubjectKey       Code = "CS3015"
	CodeSubjectName      Code = "CS3016"
	CodeIssuerDown       Code = "CS3017"
	CodeTarget           Code = "CS3020"
	CodeNoCall           Code = "CS3021"
	CodeTargetAmbiguous  Code = "CS3022"
	CodeNoUser           Code = "CS3023"
	CodeScope            Code = "CS3030"
	CodeScopeNotHeld     Code = "CS3031"
	CodeScopeNone        Code = "CS3032"
	CodeMayAct           Code = "CS3040"
	CodeHops             Code = "CS3041"
	CodeReentry          Code = "CS3042"
	CodeActor            Code = "CS3043"
	CodeCarry            Code = "CS3044"
	CodeCondition        Code = "CS3045"
	CodeConditionError   Code = "CS3046"
	CodeLifetime         Code = "CS3050"
	CodeMachine          Code = "CS3060"
	CodeAssertion        Code = "CS3070"
	CodeAssertionKey     Code = "CS3071"
	CodeAssertionTime    Code = "CS3072"
	CodeAssertionAud     Code = "CS3073"
	CodeAssertionUsed    Code = "CS3074"
	CodeWorkload         Code = "CS3075"
	CodeUnbound          Code = "CS3076"
	CodeRevoked          Code = "CS3080"
	CodeRevokedNow       Code = "CS3081"
	CodeSubjectOld       Code = "CS3082"
	CodeNotTheClient     Code = "CS3083"
	CodeTokenKind        Code = "CS3084"
	CodeRevocationsFull  Code = "CS3085"
	CodeRevocation       Code = "CS3086"
	CodeLogoutToken      Code = "CS3087"
	CodeLogoutReplay     Code = "CS3088"
	CodeRevocations      Code = "CS3089"
	CodeSVIDAudience     Code = "CS3090"
	CodeSVIDCall         Code = "CS3091"
	CodeSVIDKey          Code = "CS3092"
	CodePolicyFaults     Code = "CS4001"
	CodePolicyVersion    Code = "CS4002"
	CodePolicyConflict   Code = "CS4003"
	CodeNoPolicy         Code = "CS4004"
	CodeNoService        Code = "CS4005"
	CodeServiceState     Code = "CS4006"
	CodeSealed           Code = "CS5001"
	CodeNoKey            Code = "CS5002"
	CodeRotationPending  Code = "CS5003"
	CodePurpose          Code = "CS5004"
	CodeKeyInUse         Code = "CS5005"
	CodeKeysMany         Code = "CS5006"
	CodeKEKPlace         Code = "CS5010"
	CodeRootOffline      Code = "CS5020"
	CodeKMSBuild         Code = "CS5030"
	CodeKMSDown          Code = "CS5031"
	CodeKMSKey           Code = "CS5032"
	CodeKMSPlace         Code = "CS5033"
	CodeKMSPIN           Code = "CS5034"
	CodeBusy             Code = "CS6001"
	CodeUnknownOutcome   Code = "CS6002"
	CodeDamaged          Code = "CS6003"
	CodeAudit            Code = "CS6010"
	CodeAuditFull        Code = "CS6011"
	CodeAuditQuery       Code = "CS6012"
	CodeBackupRunning    Code = "CS6020"
	CodeDBHeld           Code = "CS6021"
	CodeDBFaults         Code = "CS6022"
	CodeDBRoom           Code = "CS6023"
	CodeRelayNoToken     Code = "CS7001"
	CodeRelayToken       Code = "CS7002"
	CodeRelayTwo         Code = "CS7003"
	CodeRelayScope       Code = "CS7004"
	CodeRelayUnjudged    Code = "CS7005"
	CodeRelayCaller      Code = "CS7006"
	CodeRelayHandles     Code = "CS7007"
	CodeRelayNoHandle    Code = "CS7010"
	CodeRelayHandle      Code = "CS7011"
	CodeRelayExchange    Code = "CS7012"
	CodeRelayAuthority   Code = "CS7013"
	CodeRelayIdentity    Code = "CS7014"
	CodeRelayHost        Code = "CS7015"
	CodeRelayUpstream    Code = "CS7020"
	CodeRelayTimeout     Code = "CS7021"
	CodeRelayStalled     Code = "CS7022"
	CodeRelayRoute       Code = "CS7030"
	CodeRelayMethod      Code = "CS7031"
	CodeRelayPath        Code = "CS7032"
	CodeRelayQuery       Code = "CS7033"
	CodeRelayHeader      Code = "CS7034"
	CodeRelayContentType Code = "CS7035"
	CodeRelayBody        Code = "CS7036"
	CodeRelayTooLarge    Code = "CS7037"
	CodeRelayDocument    Code = "CS7038"
	CodeRelayRate        Code = "CS7040"
	CodeRelayRateKey     Code = "CS7041"
)

const (
	oauthRequest = "invalid_request"
	oauthClient  = "invalid_client"
	oauthTarget  = "invalid_target"
	oauthScope   = "invalid_scope"
	oauthServer  = "server_error"
	oauthNotNow  = "temporarily_unavailable"
)

// Codes is the one table of codes, in their order. What is not in it can't be returned.
func Codes() []CodeInfo {
	return []CodeInfo{
		{CodeInternal, Internal, oauthServer, "something failed inside the daemon; its log has the cause under the request id",
			"read the daemon's log under the request id"},
		{CodeNoRoute, NotFound, oauthRequest, "there is nothing at this path",
			"check the path; docs/operations.md names the listeners"},
		{CodeMethod, Invalid, oauthRequest, "this path does not take this method",
			"use a method of the Allow header"},
		{CodeContentType, Invalid, oauthRequest, "the body is not of the media type that this path takes",
			"send the Content-Type that the message names"},
		{CodeBody, Invalid, oauthRequest, "the body can't be read as what it should be",
			"mend the body; nothing was changed"},
		{CodeTooLarge, TooLarge, oauthRequest, "the request is larger than this path takes",
			"send less: forms 64 KiB, certificate requests 128 KiB, policies 900 KiB, headers 16 KiB"},
		{CodeParameter, Invalid, oauthRequest, "a parameter is missing, doubled or malformed",
			"mend the parameter that the message names"},
		{CodeNoCredential, Unauthenticated, oauthClient, "this path needs a credential and none was sent",
			"send the client certificate of an identity directory"},
		{CodeBadCertificate, Unauthenticated, oauthClient, "the client certificate is not one that this authority issued for a client",
			"use an identity of this authority; join again if there is none"},
		{CodeExpiredPeer, Unauthenticated, oauthClient, "the client certificate is not valid at this time",
			"join again with a new join token; compare the clocks"},
		{CodeRevokedPeer, Unauthenticated, oauthClient, "the client certificate is revoked",
			"ask an operator why; join again with a new join token"},
		{CodeTwoCredentials, Invalid, oauthRequest, "more than one credential was sent",
			"send one credential"},
		{CodeWrongCredential, Unauthenticated, oauthClient, "the credential is of a kind that this path does not take",
			"use the credential that this path takes"},
		{CodeRole, Denied, "", "the operator's role does not allow this",
			"ask an operator with the role that the message names"},
		{CodeSocketPeer, Unauthenticated, oauthClient, "the admin socket serves the daemon's user and root only",
			"use --server and --identity, or the daemon's own user"},
		{CodeForwarded, Unauthenticated, oauthClient, "the client certificate that a proxy forwarded can't be taken",
			"mend the proxy: one Client-Cert (RFC 9440), or x-forwarded-client-cert with Cert, of a service, at an OAuth endpoint"},
		{CodeProxyAlone, Unauthenticated, oauthClient, "a proxy that forwards client certificates named none, and is no client by itself",
			"send a client certificate to the proxy, or another credential"},
		{CodeRateIdentity, Limited, oauthNotNow, "this identity sends more requests than limits.identity allows",
			"slow down; wait as Retry-After says"},
		{CodeRateAddress, Limited, oauthNotNow, "this address sends more requests than limits.address allows",
			"slow down; wait as Retry-After says"},
		{CodeWaiters, Limited, "", "too many requests of this identity wait for a change already",
			"ask without wait, every few seconds; or look for who asks so often with this identity"},
		{CodePaced, Unavailable, "", "more certificates are asked for than can be made now, and renewals go first",
			"come again when Retry-After says; agent, SDK and command line do so by themselves"},
		{CodeStopping, Unavailable, oauthNotNow, "the daemon is stopping",
			"repeat in a moment"},
		{CodeTimeout, Unavailable, oauthNotNow, "the request was not served in time",
			"repeat; if it happens again, look at the daemon's disk and load"},
		{CodeClock, Unavailable, oauthNotNow, "the daemon's clock leapt: nothing that carries a time is signed until it is right or confirmed",
			"countersign clock status; set the clock right, or countersign clock confirm"},
		{CodeTokensFrozen, Unavailable, oauthNotNow, "an admin froze tokens: none are issued until they are thawed",
			"countersign status tells who froze them and why; countersign thaw tokens"},
		{CodeCertsFrozen, Unavailable, "", "an admin froze certificates: none are issued until they are thawed",
			"countersign status tells who froze them and why; countersign thaw certificates"},
		{CodeFreezeState, Conflict, "", "it is frozen already, or is not frozen",
			"nothing is left to do; countersign status"},
		{CodeCSR, Invalid, "", "the certificate request can't be read",
			"make a PKCS#10 request in PEM, with no names or only those of the policy"},
		{CodeCSRKey, Invalid, "", "the key of the certificate request is not one that may be certified",
			"make a new key of a kind that the policy allows for this service"},
		{CodeCSRSignature, Invalid, "", "the certificate request is not signed by its own key",
			"sign the request with its own key"},
		{CodeTTL, Invalid, "", "the lifetime asked for is outside what may be issued",
			"ask for a lifetime inside the range that the message names"},
		{CodeNotInPolicy, Denied, "", "the policy in force names no such service",
			"add the service to the policy, or mend its name"},
		{CodeServiceDisabled, Denied, oauthClient, "the service is disabled",
			"countersign service enable NAME, if it may be used again"},
		{CodeJoinToken, Unauthenticated, "", "the join token is not one that this authority made, or it was voided",
			"make a new one: countersign join-token create SERVICE"},
		{CodeJoinTokenUsed, Unauthenticated, "", "the join token is used up",
			"make a new one; if nobody of yours used it, find out who did: countersign audit search"},
		{CodeJoinTokenExpired, Unauthenticated, "", "the join token is expired",
			"make a new one: countersign join-token create SERVICE"},
		{CodeNoCertificate, NotFound, "", "there is no such certificate",
			"countersign cert list"},
		{CodeAlreadyRevoked, Conflict, "", "the certificate is revoked already",
			"nothing is left to do"},
		{CodeKeyRevoked, Denied, "", "this key stood in a certificate that is revoked",
			"make a new key"},
		{CodeIssuerExpiring, Unavailable, "", "the intermediate expires too soon to issue this certificate",
			"roll the intermediate over: `countersign ca rotate intermediate`; until then ask for a shorter lifetime"},
		{CodeReason, Invalid, "", "there is no such reason for a revocation",
			"use a reason of RFC 5280 5.3.1, as keyCompromise or superseded"},
		{CodeNoRollback, Conflict, "", "no older intermediate can sign again",
			"go on with the present one, or rotate"},
		{CodeIssuerInUse, Conflict, "", "the root or intermediate may not be retired yet",
			"wait until its certificates are renewed; see `countersign ca status`"},
		{CodeRevokedMany, Unavailable, "", "more certificates of a service's callers are revoked than it can be told of",
			"let them expire; disable the service whose certificates were revoked, or give it shorter ones"},
		{CodeOwnRoot, Invalid, "", "the root that was brought can't be this authority's",
			"bring a root certificate that signs itself: CA, keyCertSign, no path length of 0, SHA-256, no constraint against our names"},
		{CodeOwnIntermediate, Invalid, "", "the certificate can't be this authority's intermediate",
			"have the root sign the request of `countersign ca csr` as docs/authority.md shows: CA:TRUE, pathlen:0, keyCertSign, cRLSign"},
		{CodeOwnSuccessor, Conflict, "", "the successor of a root that was brought must be brought too",
			"rotate intermediates under it: `countersign ca rotate intermediate`, or `countersign ca csr` if its key is offline"},
		{CodeNoRequest, Conflict, "", "no request of an intermediate is open",
			"make one: `countersign ca csr`"},
		{CodeNameConstraint, Denied, "", "the authority's own certificates do not permit one of the DNS names",
			"take the name out of the policy, or give the authority a root that permits it"},
		{CodeKeyType, Invalid, "", "the key is of a type that the profile of the certificate does not allow",
			"make a new key of one of the types that the message and `key_types` name"},
		{CodeProof, Unauthenticated, "", "the proof of renewal can't be read, or is not signed with the key of a certificate on record",
			"make it as docs/operations.md says: kid is the serial, iss and sub the ID, an alg that fits the certificate's key"},
		{CodeProofTime, Unauthenticated, "", "the proof of renewal is not valid at this time, or for too long",
			"make a fresh one with exp 5 minutes from now at most; compare the clocks"},
		{CodeProofAudience, Unauthenticated, "", "the proof of renewal is addressed to somebody else",
			"its aud is the issuer identifier alone, as the daemon's metadata has it"},
		{CodeProofUsed, Unauthenticated, "", "the proof of renewal was used before",
			"make one with a new jti for each request; if nobody of yours sent it, find out who did"},
		{CodeProofKey, Denied, "", "the proof of renewal is for another key than the certificate request's",
			"spki of the proof is the SHA-256 of the new key's SubjectPublicKeyInfo"},
		{CodeClient, Unauthenticated, oauthClient, "the client is no service of the policy in force",
			"use the certificate of a service that stands in the policy"},
		{CodeClientMismatch, Unauthenticated, oauthClient, "client_id, certificate and client assertion do not name one client",
			"leave client_id out, or send the ID of the certificate or assertion"},
		{CodeGrantType, Invalid, "unsupported_grant_type", "the grant type is not served here",
			"use token-exchange (RFC 8693) or client_credentials"},
		{CodeTokenRequest, Invalid, oauthRequest, "the token request can't be right",
			"mend the request as the message says"},
		{CodeTokenType, Invalid, oauthRequest, "the token type is not one that this endpoint takes or issues",
			"use the URN of access_token or jwt (RFC 8693 3)"},
		{CodeSubjectToken, Invalid, oauthRequest, "the subject token is not one that can be verified",
			"send the token as it was issued"},
		{CodeSubjectExpired, Invalid, oauthRequest, "the subject token is not valid at this time",
			"get a fresh token from the one who called you; compare the clocks"},
		{CodeSubjectAudience, Invalid, oauthRequest, "the subject token was not addressed to this client",
			"exchange only tokens that are addressed to you; `accepts` in the policy lists external audiences"},
		{CodeSubjectIssuer, Invalid, oauthRequest, "the client does not accept tokens of this issuer",
			"add the issuer to the policy and to the service's `accepts`, if its users may enter there"},
		{CodeSubjectKind, Invalid, oauthRequest, "the subject token is not of the kind that its type parameter says, or of a kind not accepted",
			"send an access token"},
		{CodeSubjectKey, Invalid, oauthRequest, "the subject token is signed with a key that its issuer does not publish",
			"look at the issuer's key set; it is fetched again at most every 30 s"},
		{CodeSubjectName, Invalid, oauthRequest, "the subject token's sub can't stand in a token of ours",
			"use `subject: prefix` for this issuer, or mend the user's id there"},
		{CodeIssuerDown, Unavailable, oauthNotNow, "the keys of the subject token's issuer can't be had at the moment",
			"look at the issuer; repeat as Retry-After says"},
		{CodeTarget, Invalid, oauthTarget, "the audience or resource names no service, or several",
			"name one service by its name, its ID or https:// and its DNS name"},
		{CodeNoCall, Denied, oauthTarget, "the policy in force has no such call",
			"countersign policy explain --from A --to B; add the call to the policy if it should be there"},
		{CodeTargetAmbiguous, Invalid, oauthTarget, "no audience was sent and the scopes fit none or several of the client's calls",
			"send `audience`, or mark one call `default: true`"},
		{CodeNoUser, Denied, oauthTarget, "the call is not open to a token without a user",
			"list the scope under `machine` of the call, if it may go without a user"},
		{CodeScope, Denied, oauthScope, "a scope that was asked for is not on this call",
			"ask for scopes of the call; countersign policy explain lists them"},
		{CodeScopeNotHeld, Denied, oauthScope, "the subject token does not hold what a scope that was asked for needs",
			"ask for less; countersign policy explain names what is needed"},
		{CodeScopeNone, Denied, oauthScope, "the subject token allows no scope of this call",
			"get a token with more scopes, or look at `needs` of the call"},
		{CodeMayAct, Denied, oauthRequest, "the subject token's may_act does not name this client",
			"the user's token names who may act for him; use that service"},
		{CodeHops, Denied, oauthRequest, "the chain is as long as it may be",
			"shorten the chain, or raise `max_hops` of the policy (at most 16)"},
		{CodeReentry, Denied, oauthRequest, "the service occurs in the chain already",
			"call it first, or not again, or mark the call `reenter: true`"},
		{CodeActor, Invalid, oauthRequest, "the actor token does not prove the authenticated client",
			"leave actor_token out: the certificate says who acts"},
		{CodeCarry, Invalid, oauthRequest, "a claim to carry is of a kind or size that can't be carried",
			"carry fewer or smaller claims; strings, numbers, booleans and lists of strings only"},
		{CodeCondition, Denied, oauthRequest, "the condition of the call does not hold",
			"countersign policy explain shows the call's `when`"},
		{CodeConditionError, Denied, oauthRequest, "the condition of the call can't be judged, which denies",
			"countersign policy explain names the error; guard a claim that may be missing with has()"},
		{CodeLifetime, Invalid, oauthRequest, "the subject token expires too soon",
			"get a fresh token from the one who called you"},
		{CodeMachine, Denied, "unauthorized_client", "the call is not open to client_credentials",
			"list the scope under `machine` of the call, if it may go without a user"},
		{CodeAssertion, Unauthenticated, oauthClient, "the client assertion or workload token is not one that can be taken",
			"sign a JWT with iss and sub = the client's ID, aud = the issuer, exp within 5 minutes and a new jti (RFC 7523); or send a workload's token for the issuer alone"},
		{CodeAssertionKey, Unauthenticated, oauthClient, "the client assertion or workload token is not signed with a key of a client",
			"look at `client_keys` or `enrol` of the service in the policy, and at iss and kid of the assertion"},
		{CodeAssertionTime, Unauthenticated, oauthClient, "the client assertion or workload token is not valid at this time, or for too long",
			"make a fresh one for each request, with exp within 5 minutes; compare the clocks"},
		{CodeAssertionAud, Unauthenticated, oauthClient, "the client assertion or workload token is not addressed to this issuer alone",
			"set aud to the issuer identifier and nothing else"},
		{CodeAssertionUsed, Unauthenticated, oauthClient, "the client assertion or workload token was used before",
			"make one with a new jti for each request; if nobody of yours used it, find out who did: countersign audit search"},
		{CodeWorkload, Unauthenticated, oauthClient, "no service is enrolled for this workload",
			"name the issuer and the exact sub under `enrol` of the service in the policy"},
		{CodeUnbound, Invalid, oauthRequest, "tokens for this service are bound to the client's certificate, and the client came without one",
			"send the client certificate too; the assertion may stay"},
		{CodeRevoked, Denied, oauthRequest, "the token is revoked, or what it was made from",
			"the user has to log in again; countersign token revocations tells who revoked it and why"},
		{CodeRevokedNow, Unavailable, oauthNotNow, "tokens of this subject or service are being revoked in this very second",
			"repeat in a second"},
		{CodeSubjectOld, Invalid, oauthRequest, "the subject token was issued longer ago than revocations are kept",
			"get a fresh token: the user has to log in again"},
		{CodeNotTheClient, Denied, "invalid_grant", "the token was issued to another client",
			"only the client that a token was issued to, or an operator, can revoke it"},
		{CodeTokenKind, Invalid, "unsupported_token_type", "it is signed by this authority, and no access token",
			"send an access token"},
		{CodeRevocationsFull, Unavailable, oauthNotNow, "there are as many revocations as can be kept at a time",
			"let tokens expire; revoke a subject or a service at once; countersign token revocations"},
		{CodeRevocation, Invalid, "", "it is not clear what is to be revoked",
			"name exactly one of jti, txn, sub, sid (with its issuer) and service"},
		{CodeLogoutToken, Invalid, oauthRequest, "the logout token is not one that can be verified",
			"look at the issuer's settings for the back-channel logout: client, algorithm, clock"},
		{CodeLogoutReplay, Invalid, oauthRequest, "this logout token was sent before",
			"nothing is left to do: it took effect the first time"},
		{CodeRevocations, Unavailable, oauthNotNow, "the revocations can't be read, so no token can be judged",
			"look at the daemon's log and its store"},
		{CodeSVIDAudience, Invalid, "", "the audiences of the JWT-SVID are not services of the policy, or too many",
			"send 1 to 16 names or IDs of services"},
		{CodeSVIDCall, Denied, "", "the policy in force has no call to a service that the JWT-SVID would be for, or that one is disabled",
			"countersign policy explain --from A --to B; add the call to the policy if it should be there"},
		{CodeSVIDKey, Unavailable, "", "no key signs JWT-SVIDs yet: the first one is published for the lead before it does",
			"countersign key list; repeat when the svid key signs"},
		{CodePolicyFaults, Invalid, "", "the policy has faults; the one in force stays",
			"mend the faults; all of them are listed with their places"},
		{CodePolicyVersion, NotFound, "", "there is no such version of the policy",
			"countersign policy history"},
		{CodePolicyConflict, Conflict, "", "the policy changed in the meantime",
			"read the policy in force, and apply your change to that"},
		{CodeNoPolicy, Conflict, oauthTarget, "no policy is in force yet",
			"countersign policy apply FILE"},
		{CodeNoService, NotFound, "", "the policy in force names no such service",
			"countersign service list"},
		{CodeServiceState, Conflict, "", "the service is in that state already",
			"nothing is left to do; countersign service list"},
		{CodeSealed, Unavailable, oauthNotNow, "the daemon is sealed: it has no key-encryption key",
			"put the KEK back (docs/operations.md); it is found within 5 s"},
		{CodeNoKey, NotFound, oauthServer, "there is no such key",
			"countersign key list"},
		{CodeRotationPending, Conflict, "", "a key is published already and waits to sign",
			"wait until the new key signs, or rotate with --now"},
		{CodePurpose, Invalid, "", "keys of this purpose are not rotated or retired here",
			"only `token` and `svid` keys are rotated and retired by command"},
		{CodeKeyInUse, Conflict, "", "the key may not be retired yet",
			"wait as the message says, or retire with --compromised"},
		{CodeKeysMany, Conflict, "", "as many keys verify as a key set may hold",
			"wait until older keys expire; countersign key list"},
		{CodeKEKPlace, Conflict, "", "the KEK's file is not where it can be replaced",
			"the KEK must be <dir>/kek, mode 0400, in a directory that the daemon may write to"},
		{CodeRootOffline, Conflict, "", "the root's key is offline",
			"`countersign ca csr` and `countersign ca import`"},
		{CodeKMSBuild, Conflict, "", "a key is in a token behind a PKCS#11 module, which this build of countersign can't load",
			"run the build for hardware keys: make build-hsm (docs/hsm.md)"},
		{CodeKMSDown, Unavailable, oauthNotNow, "the token that holds the signing key can't be used at the moment; nothing was signed",
			"repeat it; an operator looks at the token, its module and the way to it: the daemon goes on by itself (docs/hsm.md)"},
		{CodeKMSKey, Conflict, "", "a signing key is not in its token, or is another key there",
			"connect the token that the key was made in; a key that can't be had is never replaced"},
		{CodeKMSPlace, Conflict, "", "the configuration does not name the token that holds a key",
			"name it under keys.also in countersign.yaml"},
		{CodeKMSPIN, Conflict, "", "the PIN of a token can't be read, or the token refuses it",
			"put the PIN into the file that pin-source or COUNTERSIGN_KEYS_PIN_FILE names, mode 0400"},
		{CodeBusy, Unavailable, oauthNotNow, "the store is busy or the disk is full; nothing was changed",
			"look at the disk; repeat as Retry-After says"},
		{CodeUnknownOutcome, Unavailable, oauthNotNow, "it is not known whether the change was made",
			"read the state before you repeat the change"},
		{CodeDamaged, Internal, oauthServer, "a record in the store is damaged",
			"stop the daemon, keep a copy of its directory, restore a backup"},
		{CodeAudit, Unavailable, oauthNotNow, "the audit log can't be written; nothing leaves without a record",
			"look at the disk of the audit log; it goes on by itself when it can write"},
		{CodeAuditFull, Unavailable, oauthNotNow, "the audit log's queue is full",
			"repeat as Retry-After says"},
		{CodeAuditQuery, Invalid, "", "the audit query can't be read",
			"mend the parameter that the message names"},
		{CodeBackupRunning, Conflict, "", "another backup is being made",
			"wait until it is done"},
		{CodeDBHeld, Conflict, "", "a daemon uses the database",
			"stop the daemon first"},
		{CodeDBFaults, Internal, "", "the database is damaged, or the audit log does not fit it",
			"keep a copy of the directory, restore the newest backup into another one"},
		{CodeDBRoom, Unavailable, "", "there is no room for a copy of the database",
			"make room on its disk; nothing was written"},
		{CodeRelayNoToken, Unauthenticated, "", "the request has no token, and the relay takes none without",
			"send the token of a user or the relay token in one Authorization header"},
		{CodeRelayToken, Unauthenticated, "", "the token is not one that is taken here, or no longer",
			"get a new token for this service; the relay's log has the reason under the request id"},
		{CodeRelayTwo, Invalid, "", "the request's credentials can't be read, or there is more than one",
			"send one credential, in one header"},
		{CodeRelayScope, Denied, "", "the token is good and lacks a scope that the route needs",
			"get a token with the scopes that WWW-Authenticate names"},
		{CodeRelayUnjudged, Unavailable, "", "whether the token is good can't be found out at the moment",
			"repeat; if it stays, look whether the issuer can be reached from the relay"},
		{CodeRelayCaller, Unauthenticated, "", "the token was issued to another service than the one that sent it",
			"exchange the token with the certificate that it is sent with"},
		{CodeRelayHandles, Unavailable, "", "as many requests as may hold a handle are being served",
			"repeat in a moment; raise app.handles of the relay if it stays"},
		{CodeRelayNoHandle, Unauthenticated, "", "the call has neither the handle nor the token of a request, and does not go out without a user",
			"send the X-Countersign-Handle of the request that is being served; machine: true on the outbound, if the service may call as itself"},
		{CodeRelayHandle, Unauthenticated, "", "the handle or token is none that this relay gave to the application, or its request is over",
			"send the handle of the request that is being served; app.linger lets calls go out after the answer"},
		{CodeRelayExchange, Denied, "", "the authority refused to exchange the token for this service",
			"an operator sees why: countersign audit search --request ID, with the id that the message names"},
		{CodeRelayAuthority, Unavailable, "", "the authority can't be asked for a token for this service",
			"repeat; if it stays, look at the daemon"},
		{CodeRelayIdentity, Unavailable, "", "the relay has no certificate that is good now",
			"look at the relay's log and /readyz: why it can't be renewed"},
		{CodeRelayHost, Denied, "", "the call did not come as one of this machine's programs makes it",
			"call the outbound by its address; pages of a browser may not"},
		{CodeRelayUpstream, Unavailable, "", "the upstream could not be reached, or broke off (502)",
			"look whether it runs; the relay's log has the cause under the request id"},
		{CodeRelayTimeout, Unavailable, "", "the upstream did not answer in time (504)",
			"look at the upstream; timeout and idle of the route or outbound say how long it has"},
		{CodeRelayStalled, Invalid, "", "the body did not come in time (408)",
			"send it faster; limits.stall of the listener says how long it may pause"},
		{CodeRelayRoute, NotFound, "", "the relay has no route for this path",
			"check the path: letter case and a last slash count; add a route if there should be one"},
		{CodeRelayMethod, Invalid, "", "the route does not take this method",
			"use a method of the Allow header"},
		{CodeRelayPath, Invalid, "", "the path or query is not one that every server reads alike, so it is not forwarded",
			"send a path without dot segments, empty segments, encoded slashes, semicolons and control characters"},
		{CodeRelayQuery, Invalid, "", "the query is longer than the route takes",
			"send less in the query, or raise `query` of the route"},
		{CodeRelayHeader, Invalid, "", "the header is larger than the route takes",
			"send fewer or shorter header fields, or raise `headers` of the route"},
		{CodeRelayContentType, Invalid, "", "the body is not of a media type that the route takes",
			"send one Content-Type that the message names"},
		{CodeRelayBody, Invalid, "", "the body can't be read as what it says it is",
			"mend the body as the message says"},
		{CodeRelayTooLarge, TooLarge, "", "the body is larger than the route takes",
			"send less, or raise `body` of the route"},
		{CodeRelayDocument, Invalid, "", "the request is not as the route's OpenAPI document has it",
			"mend what `errors` of the answer names"},
		{CodeRelayRate, Limited, "", "the route's rate limit is used up",
			"slow down; wait as Retry-After says"},
		{CodeRelayRateKey, Denied, "", "the route's rate limit counts by something that this request does not have",
			"come with a user's token where the limit is per user; look at `rate` of the route"},
	}
}

// Info is the code's row; a code that is in no row is reported as CodeInternal's, which shows nothing.
func (c Code) Info() CodeInfo {
	var internal CodeInfo
	for _, info := range Codes() {
		if info.Code == c {
			return info
		}
		if info.Code == CodeInternal {
			internal = info
		}
	}
	return internal
}
