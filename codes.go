package countersign

// Code names one way to fail. Codes are stable: scripts, alarms and documents rely on them; a code is never reused.
type Code string

// CodeInfo is a row of the one table of codes.
type CodeInfo struct {
	Code  Code
	Kind  Kind
	OAuth string // the RFC 6749 5.2 / RFC 8693 2.2.2 error at /oauth2/*; "" where it can't occur there
	Title string // what it means, one line, constant
}

// The codes, by area: 10 the API, 20 certificates, 30 tokens, 40 policy, 50 keys, 60 storage and audit.
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
	CodeRateIdentity     Code = "CS1020"
	CodeRateAddress      Code = "CS1021"
	CodeStopping         Code = "CS1030"
	CodeTimeout          Code = "CS1031"
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
	CodeLifetime         Code = "CS3050"
	CodeMachine          Code = "CS3060"
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
	CodeBusy             Code = "CS6001"
	CodeUnknownOutcome   Code = "CS6002"
	CodeDamaged          Code = "CS6003"
	CodeAudit            Code = "CS6010"
	CodeAuditFull        Code = "CS6011"
	CodeAuditQuery       Code = "CS6012"
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
		{CodeInternal, Internal, oauthServer, "something failed inside the daemon; its log has the cause under the request id"},
		{CodeNoRoute, NotFound, oauthRequest, "there is nothing at this path"},
		{CodeMethod, Invalid, oauthRequest, "this path does not take this method"},
		{CodeContentType, Invalid, oauthRequest, "the body is not of the media type that this path takes"},
		{CodeBody, Invalid, oauthRequest, "the body can't be read as what it should be"},
		{CodeTooLarge, TooLarge, oauthRequest, "the request is larger than this path takes"},
		{CodeParameter, Invalid, oauthRequest, "a parameter is missing, doubled or malformed"},
		{CodeNoCredential, Unauthenticated, oauthClient, "this path needs a credential and none was sent"},
		{CodeBadCertificate, Unauthenticated, oauthClient, "the client certificate is not one that this authority issued for a client"},
		{CodeExpiredPeer, Unauthenticated, oauthClient, "the client certificate is not valid at this time"},
		{CodeRevokedPeer, Unauthenticated, oauthClient, "the client certificate is revoked"},
		{CodeTwoCredentials, Invalid, oauthRequest, "more than one credential was sent"},
		{CodeWrongCredential, Unauthenticated, oauthClient, "the credential is of a kind that this path does not take"},
		{CodeRole, Denied, "", "the operator's role does not allow this"},
		{CodeSocketPeer, Unauthenticated, "", "the admin socket serves the daemon's user and root only"},
		{CodeRateIdentity, Limited, oauthNotNow, "this identity sends more requests than limits.identity allows"},
		{CodeRateAddress, Limited, oauthNotNow, "this address sends more requests than limits.address allows"},
		{CodeStopping, Unavailable, oauthNotNow, "the daemon is stopping"},
		{CodeTimeout, Unavailable, oauthNotNow, "the request was not served in time"},
		{CodeCSR, Invalid, "", "the certificate request can't be read"},
		{CodeCSRKey, Invalid, "", "the key of the certificate request is not one that may be certified"},
		{CodeCSRSignature, Invalid, "", "the certificate request is not signed by its own key"},
		{CodeTTL, Invalid, "", "the lifetime asked for is outside what may be issued"},
		{CodeNotInPolicy, Denied, "", "the policy in force names no such service"},
		{CodeServiceDisabled, Denied, oauthClient, "the service is disabled"},
		{CodeJoinToken, Unauthenticated, "", "the join token is not one that this authority made, or it was voided"},
		{CodeJoinTokenUsed, Unauthenticated, "", "the join token is used up"},
		{CodeJoinTokenExpired, Unauthenticated, "", "the join token is expired"},
		{CodeNoCertificate, NotFound, "", "there is no such certificate"},
		{CodeAlreadyRevoked, Conflict, "", "the certificate is revoked already"},
		{CodeKeyRevoked, Denied, "", "this key stood in a certificate that is revoked"},
		{CodeIssuerExpiring, Unavailable, "", "the intermediate expires too soon to issue this certificate"},
		{CodeReason, Invalid, "", "there is no such reason for a revocation"},
		{CodeClient, Unauthenticated, oauthClient, "the client is no service of the policy in force"},
		{CodeClientMismatch, Unauthenticated, oauthClient, "client_id names another client than the certificate does"},
		{CodeGrantType, Invalid, "unsupported_grant_type", "the grant type is not served here"},
		{CodeTokenRequest, Invalid, oauthRequest, "the token request can't be right"},
		{CodeTokenType, Invalid, oauthRequest, "the token type is not one that this endpoint takes or issues"},
		{CodeSubjectToken, Invalid, oauthRequest, "the subject token is not one that can be verified"},
		{CodeSubjectExpired, Invalid, oauthRequest, "the subject token is not valid at this time"},
		{CodeSubjectAudience, Invalid, oauthRequest, "the subject token was not addressed to this client"},
		{CodeSubjectIssuer, Invalid, oauthRequest, "the client does not accept tokens of this issuer"},
		{CodeSubjectKind, Invalid, oauthRequest, "the subject token is not of the kind that its type parameter says, or of a kind not accepted"},
		{CodeSubjectKey, Invalid, oauthRequest, "the subject token is signed with a key that its issuer does not publish"},
		{CodeSubjectName, Invalid, oauthRequest, "the subject token's sub can't stand in a token of ours"},
		{CodeIssuerDown, Unavailable, oauthNotNow, "the keys of the subject token's issuer can't be had at the moment"},
		{CodeTarget, Invalid, oauthTarget, "the audience or resource names no service, or several"},
		{CodeNoCall, Denied, oauthTarget, "the policy in force has no such call"},
		{CodeTargetAmbiguous, Invalid, oauthTarget, "no audience was sent and the scopes fit none or several of the client's calls"},
		{CodeNoUser, Denied, oauthTarget, "the call is not open to a token without a user"},
		{CodeScope, Denied, oauthScope, "a scope that was asked for is not on this call"},
		{CodeScopeNotHeld, Denied, oauthScope, "the subject token does not hold what a scope that was asked for needs"},
		{CodeScopeNone, Denied, oauthScope, "the subject token allows no scope of this call"},
		{CodeMayAct, Denied, oauthRequest, "the subject token's may_act does not name this client"},
		{CodeHops, Denied, oauthRequest, "the chain is as long as it may be"},
		{CodeReentry, Denied, oauthRequest, "the service occurs in the chain already"},
		{CodeActor, Invalid, oauthRequest, "the actor token does not prove the authenticated client"},
		{CodeCarry, Invalid, oauthRequest, "a claim to carry is of a kind or size that can't be carried"},
		{CodeLifetime, Invalid, oauthRequest, "the subject token expires too soon"},
		{CodeMachine, Denied, "unauthorized_client", "the call is not open to client_credentials"},
		{CodePolicyFaults, Invalid, "", "the policy has faults; the one in force stays"},
		{CodePolicyVersion, NotFound, "", "there is no such version of the policy"},
		{CodePolicyConflict, Conflict, "", "the policy changed in the meantime"},
		{CodeNoPolicy, Conflict, oauthTarget, "no policy is in force yet"},
		{CodeNoService, NotFound, "", "the policy in force names no such service"},
		{CodeServiceState, Conflict, "", "the service is in that state already"},
		{CodeSealed, Unavailable, oauthNotNow, "the daemon is sealed: it has no key-encryption key"},
		{CodeNoKey, NotFound, oauthServer, "there is no such key"},
		{CodeRotationPending, Conflict, "", "a key is published already and waits to sign"},
		{CodePurpose, Invalid, "", "keys of this purpose are not rotated here"},
		{CodeKeyInUse, Conflict, "", "the key may not be retired yet"},
		{CodeKeysMany, Conflict, "", "as many keys verify as a key set may hold"},
		{CodeBusy, Unavailable, oauthNotNow, "the store is busy or the disk is full; nothing was changed"},
		{CodeUnknownOutcome, Unavailable, oauthNotNow, "it is not known whether the change was made"},
		{CodeDamaged, Internal, oauthServer, "a record in the store is damaged"},
		{CodeAudit, Unavailable, oauthNotNow, "the audit log can't be written; nothing leaves without a record"},
		{CodeAuditFull, Unavailable, oauthNotNow, "the audit log's queue is full"},
		{CodeAuditQuery, Invalid, "", "the audit query can't be read"},
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
