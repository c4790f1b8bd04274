package sts

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// Attestation is a workload's token that proves one service, for a certificate. The authority that issues it asks Used,
// decides, and puts the operation of Mark into the one Apply with the certificate's record, so that a token and what it was
// used for can't come apart. It is one request's.
type Attestation struct {
	service *Service
	compact string
	proof   proof
	policy  *countersign.Policy // that the proof was held against
}

// Attest proves by a workload's token which service asks for a certificate: a token of a workloads issuer of the policy, for
// this issuer alone, whose sub the policy enrols (`enrol`). Assertions that clients sign themselves, users' tokens and our own
// prove nothing here. Nothing is written; whether the token is used up, [Attestation.Used] tells.
// Codes: CodeAssertion and those after it, CodeClient, CodeServiceDisabled, CodeIssuerDown.
func (s *Service) Attest(ctx context.Context, by countersign.Caller, compact string) (countersign.Caller, *Attestation, error) {
	a := &Attestation{service: s, compact: compact}
	sub, err := a.prove(ctx)
	if err != nil {
		return by, nil, err
	}
	by.Method, by.ID, by.Assertion = countersign.ByAttestation, a.proof.client.ID, a.proof.id
	by.Name = "workload " + sub + " of " + a.proof.issuer
	return by, a, nil
}

// prove judges the token by the policy that is in force when it is done, as [Service.Client] does.
func (a *Attestation) prove(ctx context.Context) (sub string, err error) {
	for range maxJudgments {
		p := a.service.cfg.Policy()
		a.proof, sub, err = a.service.judgeAttestation(ctx, p, a.compact)
		if err != nil {
			return "", err
		}
		if a.service.cfg.Policy() == p {
			a.policy = p
			return sub, nil
		}
	}
	return "", countersign.Errorf(countersign.CodeBusy, "the policy changed %d times during the authentication", maxJudgments).After(time.Second)
}

func (s *Service) judgeAttestation(ctx context.Context, p *countersign.Policy, compact string) (proof, string, error) {
	t, iss, err := s.parseAssertion(compact, workloadToken)
	if err != nil {
		return proof{}, "", err
	}
	issuer, ok := p.Issuer(iss)
	if !ok {
		return proof{}, "", workloadToken.unknownKey(errors.New("the policy has no such issuer"))
	}
	a, err := s.judgeWorkload(ctx, p, issuer, t, workloadToken)
	if err != nil {
		return proof{}, "", err
	}
	if _, step := admitClient(p, a.client.ID); !step.OK {
		return proof{}, "", Trace{Steps: []Step{step}}.Err()
	}
	sub, _, err := t.Claims.String("sub") // judgeWorkload read it
	return a, sub, err
}

// Used judges the token again, by the policy of now, and tells what it was used for: the key and the newest certificate that
// it got, both "" if it was a client assertion instead; rev is 0 if it was not used yet.
func (a *Attestation) Used(ctx context.Context) (spki, serial string, rev storage.Rev, err error) {
	if a.service.cfg.Policy() != a.policy {
		before := a.proof.client.ID
		if _, err := a.prove(ctx); err != nil {
			return "", "", 0, err
		}
		if a.proof.client.ID != before {
			return "", "", 0, countersign.Errorf(countersign.CodeWorkload, "the workload was enrolled for another service meanwhile")
		}
	}
	if a.service.cfg.Now().After(a.proof.until.Add(skew)) {
		return "", "", 0, countersign.Errorf(countersign.CodeAssertionTime, "the workload token expired meanwhile").WithHint("send a fresh one")
	}
	entry, err := assertionsTable().Get(ctx, a.service.cfg.Store, a.proof.key())
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return "", "", 0, nil
	case err != nil:
		return "", "", 0, fmt.Errorf("read the use of a workload token: %w", err)
	}
	return entry.Value.SPKI, entry.Value.Serial, entry.Rev, nil
}

// Mark is the operation that records what the token is used for, on condition that its use is what Used told.
func (a *Attestation) Mark(spki, serial string, rev storage.Rev) (storage.Op, error) {
	record := spent{Client: a.proof.client.ID, At: a.service.cfg.Now().UTC(), SPKI: spki, Serial: serial}
	return a.proof.use(record, storage.Cond{Absent: rev == 0, Rev: rev})
}
