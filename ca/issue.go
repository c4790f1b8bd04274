package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"slices"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// IssueRequest is what a caller asks for.
type IssueRequest struct {
	CSR []byte        // PEM; see [Authority.Issue]
	TTL time.Duration // 1 min to what the policy gives; 0: what the policy gives

	Proof Proof  // of a caller by attestation; nil of all others
	SPKI  string // of a caller by a proof of renewal: the one key that it is for
}

// Proof is a workload's token that was found right for the caller by attestation. Who verified it remembers what it was used
// for; that is written in the one Apply that records the certificate.
type Proof interface {
	// Used judges the token again and tells which key it got certificates for, and the newest of them: "" if it was used for
	// something else. rev is 0 if it was not used yet.
	Used(ctx context.Context) (spki, serial string, rev storage.Rev, err error)
	// Mark is the operation that records the use, on condition that rev is still what Used told.
	Mark(spki, serial string, rev storage.Rev) (storage.Op, error)
}

// The ways to a certificate, as metrics and audit name them.
const (
	howJoin     = "join-token"
	howAttested = "attestation"
	howRenewal  = "renewal"
	howGrace    = "grace" // renewal with a certificate that has ended
	howOperator = "operator"
	howDaemon   = "daemon"
	howRepeat   = "repeat" // the recorded certificate once more
)

// order is one certificate that is to be issued: everything that was decided before the store is asked.
type order struct {
	by      countersign.Caller
	how     string
	profile Profile
	names   names
	csr     csr
	ttl     time.Duration
	rules   rules
	role    countersign.Role // of the operator that is added
	proof   Proof            // of howAttested
	held    *held            // of howRenewal and howGrace; nil: it is to be read (again)
}

// Issue issues a certificate to the caller himself: to a service that holds a join token or is attested by a workload's
// token, and to a service or operator that holds a certificate (renewal), also one that ended within the grace. The request's key is all that is taken from it; names, usages and lifetime come
// from the policy, the same for all ways. It may be repeated: the same join token with the same key gets the certificate
// that was issued to it. A workload's token is good for one key, and may be repeated with that until it expires: past half
// of the recorded certificate's lifetime it gets another one.
//
// Codes: CodeCSR, CodeCSRKey, CodeKeyType, CodeNameConstraint, CodeCSRSignature, CodeTooLarge, CodeTTL, CodeNotInPolicy, CodeServiceDisabled,
// CodeJoinToken, CodeJoinTokenUsed, CodeJoinTokenExpired, CodeKeyRevoked, CodeRevokedPeer, CodeIssuerExpiring,
// CodeSealed, CodeClock, CodeBusy, CodeUnknownOutcome, CodeAudit; CodeAssertionUsed and those of the proof.
func (a *Authority) Issue(ctx context.Context, by countersign.Caller, r IssueRequest) (*Certificate, error) {
	o, err := a.decide(by, r)
	if err == nil {
		var cert *Certificate
		if cert, err = a.fulfil(ctx, o); err == nil {
			return cert, nil
		}
	} else if by.Method == countersign.ByJoinToken {
		err = a.unlessUsed(ctx, by, err)
	}
	return nil, a.deny(ctx, by, by.ID.String(), a.forked(ctx, by, err))
}

// decide is the part of Issue that needs no store: who asks, what policy gives him, whether the request is in order.
func (a *Authority) decide(by countersign.Caller, r IssueRequest) (order, error) {
	o := order{by: by}
	switch by.Method {
	case countersign.ByJoinToken:
		o.how = howJoin
	case countersign.ByAttestation:
		if r.Proof == nil {
			return o, countersign.Errorf(countersign.CodeWrongCredential, "an attested caller without what attests it")
		}
		o.how, o.proof = howAttested, r.Proof
	case countersign.ByCertificate, countersign.ByProof:
		o.how = howRenewal
	case countersign.ByExpired:
		o.how = howGrace
	case countersign.Anonymous:
		return o, countersign.Errorf(countersign.CodeNoCredential, "a certificate is issued to who holds a join token, a workload's token or a certificate").
			WithHint("an operator makes a join token with `countersign join-token create`")
	default:
		return o, countersign.Errorf(countersign.CodeWrongCredential, "certificates are not issued by the way of %s", by.Method)
	}
	if frozen := a.cfg.Policy().Frozen.RefuseCertificates(); frozen != nil {
		return o, frozen
	}
	if by.ID.TrustDomain() != a.cfg.TrustDomain {
		return o, countersign.Errorf(countersign.CodeBadCertificate, "%s is not of this trust domain", by.ID)
	}
	o.rules = a.operatorRules()
	switch kind := by.ID.Kind(); {
	case kind == countersign.ServiceID:
		s, err := serviceInForce(a.cfg.Policy(), by.ID)
		if err != nil {
			return o, err
		}
		o.profile, o.names = ProfileService, names{id: s.ID, dns: s.DNS}
		o.rules = rules{s.KeyTypes, time.Duration(s.TTL)}
		if o.rules.most == 0 {
			o.rules.most = a.cfg.ServiceTTL
		}
	case kind == countersign.OperatorID && (o.how == howRenewal || o.how == howGrace):
		o.profile, o.names = ProfileOperator, names{id: by.ID}
	default:
		return o, countersign.Errorf(countersign.CodeWrongCredential, "no certificate is issued to a %s by the way of %s", kind, by.Method)
	}
	var err error
	if o.ttl, err = lifetime(r.TTL, o.rules.most); err != nil {
		return o, err
	}
	if err = a.permitted(o.names.dns); err != nil {
		return o, err
	}
	if o.csr, err = parseCSR(r.CSR, o.rules.keyTypes, o.names); err != nil {
		return o, err
	}
	return o, forKey(by, r, o.csr)
}

func (a *Authority) operatorRules() rules { return rules{a.cfg.OperatorKeys, a.cfg.OperatorTTL} }

// serviceInForce is the service of the policy that may have a certificate now.
func serviceInForce(p *countersign.Policy, id countersign.ID) (*countersign.Service, error) {
	s, ok := p.ServiceByID(id)
	if !ok {
		return nil, countersign.Errorf(countersign.CodeNotInPolicy, "policy version %d names no service %s", p.Version, id.Name()).
			WithHint("add it to the policy and apply that")
	}
	if s.Disabled != nil {
		return nil, countersign.Errorf(countersign.CodeServiceDisabled, "the service %s is disabled: %s", s.Name, s.Disabled.Reason).
			WithHint("`countersign service enable %s` ends that", s.Name)
	}
	return s, nil
}

// IssueServer issues the daemon's own certificate, for the names of Config.DNS.
func (a *Authority) IssueServer(ctx context.Context, request []byte) (*Certificate, error) {
	by := countersign.Daemon("its own certificate")
	id, err := countersign.NewAuthorityID(a.cfg.TrustDomain)
	if err != nil {
		return nil, err
	}
	o := order{
		by: by, how: howDaemon, profile: ProfileAuthority, ttl: a.cfg.ServerTTL, rules: rules{a.cfg.ServerKeys, a.cfg.ServerTTL},
		names: names{id: id, dns: a.dns, ips: a.ips},
	}
	if err = a.permitted(o.names.dns); err == nil {
		o.csr, err = parseCSR(request, o.rules.keyTypes, o.names)
	}
	if err == nil {
		var cert *Certificate
		if cert, err = a.fulfil(ctx, o); err == nil {
			return cert, nil
		}
	}
	return nil, a.deny(ctx, by, id.String(), err)
}

// AddOperator records an operator with a role and issues its first certificate. An operator that is there already gets
// the new role, at once for all its certificates, and one more certificate. The caller must be an admin (CodeRole).
func (a *Authority) AddOperator(ctx context.Context, by countersign.Caller, name string, role countersign.Role, request []byte) (*Certificate, error) {
	o, err := a.decideOperator(by, name, role, request)
	if err == nil {
		var cert *Certificate
		if cert, err = a.fulfil(ctx, o); err == nil {
			return cert, nil
		}
	}
	return nil, a.deny(ctx, by, name, err)
}

func (a *Authority) decideOperator(by countersign.Caller, name string, role countersign.Role, request []byte) (order, error) {
	o := order{by: by, how: howOperator, profile: ProfileOperator, ttl: a.cfg.OperatorTTL, rules: a.operatorRules(), role: role}
	if by.Role < countersign.RoleAdmin || role > by.Role {
		return o, countersign.Errorf(countersign.CodeRole, "operators are added by an admin; %s has the role %s", by.Name, by.Role)
	}
	if frozen := a.cfg.Policy().Frozen.RefuseCertificates(); frozen != nil {
		return o, frozen
	}
	if role == countersign.RoleNone || role > countersign.RoleAdmin {
		return o, countersign.Errorf(countersign.CodeParameter, "an operator needs a role: viewer, operator or admin")
	}
	id, err := countersign.NewOperatorID(a.cfg.TrustDomain, name)
	if err != nil {
		return o, countersign.Errorf(countersign.CodeParameter, "%v", err)
	}
	o.names = names{id: id}
	o.csr, err = parseCSR(request, o.rules.keyTypes, o.names)
	return o, err
}

// maxTries bounds how often a commit is tried anew after somebody else changed a record that it depends on.
const maxTries = 8

// fulfil takes an order from the store's records to the certificate that may leave: house.md, flow 1.
func (a *Authority) fulfil(ctx context.Context, o order) (*Certificate, error) {
	// The signer asks it again; here it keeps intents that would come to nothing out of the log.
	if err := a.cfg.Keys.Guard(); err != nil {
		return nil, err
	}
	all := a.issuers.Load()
	issuer, ok := all.signing(a.cfg.Now())
	if !ok {
		return nil, countersign.Errorf(countersign.CodeInternal, "no intermediate signs")
	}
	s, err := a.subject(o, issuer)
	if err != nil {
		return nil, err
	}
	serial := serialText(s.Serial)
	lineage := ""
	switch o.how {
	case howDaemon:
	case howRenewal, howGrace:
		if o.held, err = a.holding(ctx, o.by.Serial); err != nil {
			return nil, o.judged(err)
		}
		lineage = o.held.record.Value.Lineage // which never changes
	default:
		lineage = serial
	}
	ops, repeat, err := a.admit(ctx, o, serial, s.NotAfter)
	if err != nil {
		return nil, err
	}
	if repeat != "" {
		return a.repeat(ctx, o, repeat)
	}
	tbs, err := prepare(o.profile, s, s.Issuer.PublicKey)
	if err != nil {
		return nil, countersign.Errorf(countersign.CodeInternal, "the certificate can't be made").Because(err)
	}
	signer, err := a.cfg.Keys.SignerByID(issuer.KeyID)
	if err != nil {
		return nil, err
	}
	// From here on the serial may come to exist: the intent is durable before the signature is made.
	a.flights.begin(serial, o.names.id, a.cfg.Audit.Head().Seq)
	if err := a.cfg.Audit.AppendAll(ctx, intentEvent(o, s, tbs)); err != nil {
		// It is not in the log, or the process ends with a failed fsync and the next start looks. To remember the serial
		// would let whoever asks fill the memory as long as nothing can be recorded.
		a.flights.end(serial)
		return nil, err
	}
	leaf, err := sign(tbs, signer)
	if err != nil {
		a.abandon(ctx, o, serial, "signing did not succeed")
		if known := countersign.AsError(err); known.Code == countersign.CodeKMSDown {
			return nil, known
		}
		return nil, countersign.Errorf(countersign.CodeInternal, "the certificate can't be signed").Because(err)
	}
	record := newRecord(o, leaf, s.Issuer, a.cfg.Now())
	record.Lineage = lineage
	// An intermediate that was rolled back or retired in the meantime wins over what it signed.
	fence := authoritiesTable().Check(issuer.serial, storage.Cond{Rev: issuer.rev})
	repeat, err = a.commit(ctx, o, record, fence, ops)
	if err != nil {
		return nil, err
	}
	if repeat != "" {
		return a.repeat(ctx, o, repeat)
	}
	// Crash point: recorded and not yet told. The next start finds the record and writes "recovered"; a client that
	// repeats itself gets the recorded certificate.
	if err := a.cfg.Audit.AppendAll(context.WithoutCancel(ctx), doneEvents(o, record)...); err != nil {
		a.flights.leave(serial)
		return nil, err
	}
	a.flights.end(serial)
	a.metrics.countIssued(o.profile, o.how)
	return newCertificate(o.names.id, leaf, all.chain(issuer)), nil
}

// subject is what the certificate of o will say.
func (a *Authority) subject(o order, by issuer) (Subject, error) {
	parent := by.cert
	notBefore, notAfter, err := validity(a.cfg.Now(), o.ttl, parent)
	if err != nil {
		return Subject{}, err
	}
	serial, err := newSerial()
	return Subject{
		ID: o.names.id, TrustDomain: a.cfg.TrustDomain, DNS: o.names.dns, IPs: o.names.ips, Key: o.csr.key,
		Serial: serial, NotBefore: notBefore, NotAfter: notAfter, Issuer: parent, PKI: a.cfg.PKI, Permit: a.cfg.Permit,
		KeyTypes: o.rules.keyTypes, Most: o.rules.most,
	}, err
}

// commit makes the record durable together with everything that it depends on, or nothing. When somebody else changed
// one of those records, they are judged anew: the one who lost the race for a join token with the same key gets the
// serial of the winner's certificate as repeat. ErrUnknown is settled by reading the record, never by guessing.
func (a *Authority) commit(ctx context.Context, o order, r Record, issuer storage.Op, fences []storage.Op) (repeat string, err error) {
	recording, err := recordOps(r)
	recording = append(recording, issuer)
	if err != nil {
		a.abandon(ctx, o, r.Serial, "its record can't be encoded")
		return "", countersign.Errorf(countersign.CodeInternal, "the certificate can't be recorded").Because(err)
	}
	for range maxTries {
		_, err = a.cfg.Store.Apply(ctx, slices.Concat(recording, fences)...)
		if err == nil {
			return "", nil
		}
		if errors.Is(err, storage.ErrUnknown) {
			_, found := certificatesTable().Get(context.WithoutCancel(ctx), a.cfg.Store, r.Serial)
			if found == nil {
				return "", nil
			}
			// It may still be applied: the intent stays open until the next start.
			return "", storeError(err)
		}
		if !errors.Is(err, storage.ErrConflict) {
			break
		}
		o.held = nil
		fences, repeat, err = a.admit(ctx, o, r.Serial, r.NotAfter)
		if err != nil || repeat != "" {
			break
		}
		err = storage.ErrConflict
	}
	a.abandon(ctx, o, r.Serial, "it could not be recorded")
	if repeat != "" {
		return repeat, nil
	}
	return "", storeError(err)
}

// repeat answers with the certificate that was issued before for the same join token, or workload's token, and key.
func (a *Authority) repeat(ctx context.Context, o order, serial string) (*Certificate, error) {
	cert, record, err := a.recorded(ctx, serial)
	if err != nil {
		return nil, err
	}
	if record.State == StateRevoked {
		return nil, countersign.Errorf(countersign.CodeKeyRevoked, "the certificate that was issued for this token and key is revoked")
	}
	o.how = howRepeat
	if _, err := a.cfg.Audit.Append(ctx, issuedRecordEvent(o, record)); err != nil {
		return nil, err
	}
	a.metrics.countIssued(o.profile, o.how)
	return cert, nil
}

func newRecord(o order, leaf, parent *x509.Certificate, now time.Time) Record {
	return Record{
		Serial: serialText(leaf.SerialNumber), ID: o.names.id, Kind: string(o.profile), State: StateValid,
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, IssuedAt: now.UTC(),
		KeyAlg: o.csr.alg, SPKI: o.csr.spki, Fingerprint: fingerprint(leaf),
		Issuer: serialText(parent.SerialNumber), IssuedTo: o.by.Name, PEM: certPEM(leaf),
	}
}
