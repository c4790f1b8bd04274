package sts

import (
	"slices"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

// refusedToken makes the failed step 2 of what verification found. The token is not verified, or worse: its claims are
// used to explain, and nothing here suggests to trust more than its issuer or audience.
func refusedToken(p *countersign.Policy, ourIssuer string, client *countersign.Service, compact string, err error) Step {
	s := failed(StepSubject, err)
	claims := suspect{}
	if t, err := jwt.Parse(compact); err == nil {
		claims.typ = t.Typ
		claims.iss, _, _ = t.Claims.String("iss")
		claims.aud, _ = t.Claims.Audience()
	}
	if claims.iss == ourIssuer {
		s.Nearest, s.Change = adviseOwn(p, client, claims, s.Code)
	} else {
		s.Nearest, s.Change = adviseExternal(p, client, claims, s.Code)
	}
	return advised(s)
}

// suspect is what a token says that was not verified.
type suspect struct {
	typ, iss string
	aud      []string
}

// adviseOwn is for tokens that say they are ours.
func adviseOwn(p *countersign.Policy, client *countersign.Service, t suspect, code countersign.Code) (string, *Change) {
	nearest := "service " + client.Name
	switch code {
	case countersign.CodeSubjectAudience:
		for _, aud := range t.aud {
			if call, ok := p.Call(aud, client.Name); ok {
				return ruleText(call), inToken(OpSet, "aud", client.Name).note("%s has to exchange it for %s first", aud, client.Name)
			}
		}
		for i := range p.Calls {
			if p.Calls[i].To == client.Name {
				nearest = ruleText(&p.Calls[i])
				break
			}
		}
		return nearest, inToken(OpSet, "aud", client.Name)
	case countersign.CodeSubjectKind:
		return nearest, inToken(OpSet, "typ", client.Typ)
	case countersign.CodeSubjectExpired:
		return nearest, inToken(OpSet, "exp", "in the future")
	case countersign.CodeSubjectKey:
		return nearest, inToken(OpSet, "kid", "one of /.well-known/jwks.json")
	case countersign.CodeSubjectIssuer:
		return nearest, inPolicy(OpAdd, "issuers", "{name: NAME, use: users, issuer: URL, scopes: [SCOPE]}").
			note("the user's issuer stood in an earlier version: countersign policy history")
	}
	return nearest, nil
}

// adviseExternal is for all other tokens.
func adviseExternal(p *countersign.Policy, client *countersign.Service, t suspect, code countersign.Code) (string, *Change) {
	issuer, known := p.Issuer(t.iss)
	if !known {
		if code != countersign.CodeSubjectIssuer || t.iss == "" {
			return acceptedText(client), nil
		}
		return nearestIssuer(p, client, t.iss), inPolicy(OpAdd, "issuers",
			"{name: NAME, use: users, issuer: "+word(clip(t.iss, 512))+", scopes: [SCOPE]}").
			note("and {issuer: NAME, audiences: %s} to services[%s].accepts; only if you trust it to say who a user is",
				flow(t.aud[:min(len(t.aud), 1)]), client.Name)
	}
	nearest := "issuer " + issuer.Name
	path := "services[" + client.Name + "].accepts"
	switch code {
	case countersign.CodeSubjectIssuer:
		if issuer.Use != countersign.UseUsers && issuer.Use != "" {
			return nearest, inToken(OpSet, "iss", "of an issuer of users")
		}
		if len(t.aud) == 0 {
			return nearest, inToken(OpSet, "aud", "an audience of "+client.Name)
		}
		return nearest, inPolicy(OpAdd, path, "{issuer: "+word(issuer.Name)+", audiences: "+flow(knownAudience(p, issuer, t.aud))+"}")
	case countersign.CodeSubjectAudience:
		if len(t.aud) == 0 {
			return nearest, inToken(OpSet, "aud", client.AudiencesFor(issuer.Name)[0])
		}
		return nearest, inPolicy(OpAdd, path+"["+issuer.Name+"].audiences", word(clip(t.aud[0], 255))).
			note("only if tokens for %s are meant for %s too", quote(t.aud[0]), client.Name)
	case countersign.CodeSubjectKind:
		if !slices.Contains(issuer.Tokens, "access") {
			return nearest, inPolicy(OpAdd, "issuers["+issuer.Name+"].tokens", "access")
		}
		return nearest, inToken(OpSet, "typ", "at+jwt").note("the access token, not another token of the same login")
	case countersign.CodeSubjectName:
		if issuer.Subject == countersign.SubjectKeep {
			return nearest, inPolicy(OpSet, "issuers["+issuer.Name+"].subject", "prefix").note("every sub of this issuer changes; a sub that is empty, too long or of control characters stays refused")
		}
		return nearest, inToken(OpSet, "sub", "that names the user")
	case countersign.CodeSubjectExpired:
		return nearest, inToken(OpSet, "exp", "in the future")
	case countersign.CodeSubjectKey:
		return nearest, inToken(OpSet, "kid", "that the issuer publishes").note("its key set is fetched again at most every 30 s")
	case countersign.CodeIssuerDown:
		return nearest, command("make the keys of issuer %s reachable for the daemon", issuer.Name)
	}
	return nearest, nil
}

// knownAudience is one of aud that some entry point takes from the issuer already, or else the first.
func knownAudience(p *countersign.Policy, issuer *countersign.Issuer, aud []string) []string {
	for i := range p.Services {
		if known := intersect(aud, p.Services[i].AudiencesFor(issuer.Name)); len(known) > 0 {
			return known[:1]
		}
	}
	return aud[:1]
}

// nearestIssuer is the one whose URL differs least from iss, or else one that the client takes.
func nearestIssuer(p *countersign.Policy, client *countersign.Service, iss string) string {
	var urls []string
	for i := range p.Issuers {
		urls = append(urls, p.Issuers[i].URL)
	}
	if near := countersign.Nearest(iss, urls); near != "" {
		issuer, _ := p.Issuer(near)
		return "issuer " + issuer.Name + ": " + issuer.URL
	}
	return acceptedText(client)
}

func acceptedText(client *countersign.Service) string {
	if len(client.Accepts) > 0 {
		return "issuer " + client.Accepts[0].Issuer
	}
	return "service " + client.Name + ": no entry point"
}

// refusedRequest makes the step of parameters that contradict each other.
func refusedRequest(r Request, err error) Step {
	s := failed(StepRequest, err)
	switch {
	case s.Code == countersign.CodeGrantType:
		s.Change = inRequest("grant_type", GrantExchange)
	case r.GrantType == "":
		s.Change = inRequest("grant_type", GrantExchange)
	case r.GrantType == GrantClientCredentials && s.Code == countersign.CodeTokenRequest:
		s.Change = leaveOut("subject_token, subject_token_type, actor_token and actor_token_type")
	case r.SubjectToken == "" && r.GrantType == GrantExchange:
		s.Change = inRequest("subject_token", "the token that the caller sent")
	case r.SubjectTokenType == "", s.Code == countersign.CodeSubjectKind:
		s.Change = inRequest("subject_token_type", TypeAccessToken)
	case r.ActorToken == "" && r.ActorTokenType != "":
		s.Change = leaveOut("actor_token_type")
	case r.ActorToken != "" && r.ActorTokenType != TypeAccessToken && r.ActorTokenType != TypeJWT:
		s.Change = leaveOut("actor_token and actor_token_type")
	case checkRequested(r.RequestedTokenType) != nil:
		s.Change = leaveOut("requested_token_type")
	case s.Code == countersign.CodeTokenType:
		s.Change = inRequest("subject_token_type", TypeAccessToken)
	}
	return advised(s)
}
