package api

import (
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/storage/policy"
	"github.com/countersign/countersign/sts"
)

// policyDocument shows a version, as JSON or, if that is what is accepted first, as the YAML itself.
func (s *Server) policyDocument(rq *request) error {
	number, err := rq.number("version", 1, math.MaxInt32, 0)
	if err != nil {
		return err
	}
	version, document, err := s.Policy.Document(rq.Request().Context(), number)
	if err != nil {
		return err
	}
	rq.Response().Header().Set("ETag", versionTag(version.Version))
	rq.Response().Header().Set("Vary", "Accept")
	accepted, _, _ := strings.Cut(rq.Request().Header.Get("Accept"), ",")
	media, _, _ := strings.Cut(accepted, ";")
	if strings.EqualFold(strings.TrimSpace(media), wire.YAML) {
		return rq.Blob(http.StatusOK, wire.YAML, document)
	}
	return rq.answer(http.StatusOK, wire.PolicyDocument{PolicyVersion: policyVersion(version), Document: string(document)})
}

func versionTag(version int) string { return `"` + strconv.Itoa(version) + `"` }

func policyVersion(v policy.Version) wire.PolicyVersion {
	return wire.PolicyVersion{Version: v.Version, At: v.At.UTC(), By: v.By, SHA256: v.SHA256, Comment: v.Comment}
}

// policyHistory lists the newest versions.
func (s *Server) policyHistory(rq *request) error {
	limit, err := rq.number("limit", 1, 1000, 50)
	if err != nil {
		return err
	}
	versions, err := s.Policy.History(rq.Request().Context(), limit)
	if err != nil {
		return err
	}
	out := wire.PolicyHistory{Versions: make([]wire.PolicyVersion, 0, len(versions))}
	for _, v := range versions {
		out.Versions = append(out.Versions, policyVersion(v))
	}
	return rq.answer(http.StatusOK, out)
}

// applyPolicy puts a document in force, if the version that If-Match names still is.
func (s *Server) applyPolicy(rq *request) error {
	dryRun, err := rq.flag("dry_run")
	if err != nil {
		return err
	}
	ifVersion, err := ifMatch(rq.Request().Header.Values("If-Match"))
	if err != nil {
		return err
	}
	applied, err := s.Policy.Apply(rq.Request().Context(), rq.caller, rq.body, policy.ApplyOptions{IfVersion: ifVersion, DryRun: dryRun})
	if err != nil {
		return err
	}
	return rq.answer(http.StatusOK, policyApplied(applied, dryRun))
}

// ifMatch reads `If-Match: "<version>"`; -1 is no condition.
func ifMatch(headers []string) (int, error) {
	if len(headers) == 0 {
		return -1, nil
	}
	quoted := headers[0]
	if len(headers) == 1 && len(quoted) > 2 && quoted[0] == '"' && quoted[len(quoted)-1] == '"' {
		version, err := strconv.ParseUint(quoted[1:len(quoted)-1], 10, 31)
		if err == nil && versionTag(int(version)) == quoted {
			return int(version), nil
		}
	}
	return 0, countersign.Errorf(countersign.CodeParameter, `If-Match must be one version in quotes, like "3"`)
}

func policyApplied(a policy.Applied, dryRun bool) wire.PolicyApplied {
	return wire.PolicyApplied{
		Version: a.Version, Previous: a.Previous, Diff: a.Diff, Warnings: a.Warnings, Unchanged: a.Unchanged, DryRun: dryRun,
	}
}

// rollback makes a new version with an old document.
func (s *Server) rollback(rq *request) error {
	var in wire.Rollback
	if err := rq.decodeJSON(&in); err != nil {
		return err
	}
	if in.Version < 1 {
		return countersign.Errorf(countersign.CodeParameter, "version must be a version of the policy, from 1")
	}
	applied, err := s.Policy.Rollback(rq.Request().Context(), rq.caller, in.Version)
	if err != nil {
		return err
	}
	return rq.answer(http.StatusOK, policyApplied(applied, false))
}

// explain tells how an exchange would be decided. It changes nothing and mints nothing.
func (s *Server) explain(rq *request) error {
	var in wire.ExplainRequest
	if err := rq.decodeJSON(&in); err != nil {
		return err
	}
	if in.From == "" {
		return countersign.Errorf(countersign.CodeParameter, "from is missing: the service that would ask")
	}
	if in.Token != "" && len(in.SubjectScopes) > 0 {
		return countersign.Errorf(countersign.CodeParameter, "send either token or subject_scopes")
	}
	version := s.Policy.Current().Version
	x, err := s.STS.Explain(rq.Request().Context(), sts.ExplainRequest{
		From: in.From, To: in.To, Scopes: in.Scopes, Token: in.Token, SubjectScopes: in.SubjectScopes,
	})
	if err != nil {
		return err
	}
	out := wire.Explanation{
		Allowed: x.Allowed, Audience: x.Audience, Scope: x.Scope, TTL: countersign.Duration(x.TTL), Version: version,
		Steps: make([]wire.Step, 0, len(x.Steps)),
	}
	for _, step := range x.Steps {
		out.Steps = append(out.Steps, wire.Step{
			Name: step.Name, OK: step.OK, Code: step.Code, Msg: step.Msg, Rule: step.Rule, Hint: step.Hint,
			Nearest: step.Nearest, Change: change(step.Change),
		})
	}
	return rq.answer(http.StatusOK, out)
}

// services lists the services of the policy in force with their states.
func (s *Server) services(rq *request) error {
	current := s.Policy.Current()
	out := wire.Services{Version: current.Version, Services: make([]wire.Service, 0, len(current.Services))}
	for i := range current.Services {
		service := &current.Services[i]
		shown := wire.Service{
			Name: service.Name, ID: service.ID, DNS: service.DNS, CertificateTTL: service.TTL, CertificateKeys: service.KeyTypes,
			TokenAlg: service.Alg, TokenTyp: service.Typ, Disabled: service.Disabled,
		}
		for _, accept := range service.Accepts {
			shown.Accepts = append(shown.Accepts, accept.Issuer)
		}
		for _, edge := range current.CallsFrom(service.Name) {
			shown.Calls = append(shown.Calls, edge.To)
		}
		out.Services = append(out.Services, shown)
	}
	return rq.answer(http.StatusOK, out)
}

// disableService takes a service out of use at once.
func (s *Server) disableService(rq *request) error { return s.setDisabled(rq, true) }

// enableService takes a service into use again.
func (s *Server) enableService(rq *request) error { return s.setDisabled(rq, false) }

func (s *Server) setDisabled(rq *request, disabled bool) error {
	name, err := rq.service()
	if err != nil {
		return err
	}
	var in wire.Reason
	if err := rq.decodeJSON(&in); err != nil {
		return err
	}
	if err := checkReason(in.Reason, disabled); err != nil {
		return countersign.Errorf(countersign.CodeParameter, "reason: %v", err)
	}
	if err := s.Policy.SetDisabled(rq.Request().Context(), rq.caller, name, in.Reason, disabled); err != nil {
		return err
	}
	return rq.NoContent(http.StatusNoContent)
}

// freeze ends the issuing of tokens, certificates or both.
func (s *Server) freeze(rq *request) error { return s.setFrozen(rq, true) }

// thaw takes that back.
func (s *Server) thaw(rq *request) error { return s.setFrozen(rq, false) }

func (s *Server) setFrozen(rq *request, frozen bool) error {
	var in wire.Freeze
	if err := rq.decodeJSON(&in); err != nil {
		return err
	}
	if err := checkReason(in.Reason, frozen); err != nil {
		return countersign.Errorf(countersign.CodeParameter, "reason: %v", err)
	}
	after, err := s.Policy.SetFrozen(rq.Request().Context(), rq.caller, in.What, in.Reason, frozen)
	if err != nil {
		return err
	}
	return rq.answer(http.StatusOK, after)
}

func checkReason(reason string, required bool) error {
	switch {
	case required && strings.TrimSpace(reason) == "":
		return errors.New("say why, for those who will ask")
	case len(reason) > 500:
		return errors.New("at most 500 bytes")
	case strings.ContainsFunc(reason, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		return errors.New("one line, without control characters")
	}
	return nil
}
