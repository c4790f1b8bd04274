package ca

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// leafStanding is what r's issuer says of the certificate, by its record and those of its lineage and key; nil where they
// are not asked. It is pure, and agrees with [Authority.PeerCaller], which refuses what is revoked here: a certificate may
// be revoked by itself, by the block of its lineage (whose certificates are marked one after the other), and by its key,
// which was compromised in another certificate. When that was is not known: it counts from the beginning.
func leafStanding(r Record, line *lineageRecord, key *keyRecord) standing {
	switch {
	case r.State != StateValid:
		return standing{known: true, revoked: true, at: r.RevokedAt, reason: reasonCode(r.Reason)}
	case line != nil && !line.Blocked.IsZero():
		return standing{known: true, revoked: true, at: line.Blocked, reason: reasonCode(line.Reason)}
	case key != nil && key.Revoked == reasonKeyCompromise:
		return standing{known: true, revoked: true, at: r.NotBefore, reason: reasonCode(key.Revoked)}
	}
	return standing{known: true}
}

// authorityStanding is what the root says of a certificate of the authority itself: one that was retired is over, since its
// key is gone and nothing answers for it. It is pure.
func authorityStanding(root, i issuer) standing {
	switch {
	case !signs(root, i):
		return standing{}
	case i.Role == ProfileRoot || i.Retired.IsZero():
		return standing{known: true}
	}
	return standing{known: true, revoked: true, at: i.Retired, reason: reasonCode("cessationOfOperation")}
}

// standingOf is the standing of a serial under an issuer: unknown if the issuer never made it, or it is over for a week. A
// record that can't be read is an error, and nobody is good for it.
func (a *Authority) standingOf(ctx context.Context, by issuer, id certID) (standing, error) {
	if !id.possible {
		return standing{}, nil
	}
	serial := serialText(id.serial)
	if by.Role == ProfileRoot {
		if i, ok := a.issuers.Load().find(serial); ok {
			return authorityStanding(by, i), nil
		}
	}
	switch responder, err := respondersTable().Get(ctx, a.cfg.Store, serial); {
	case err == nil:
		return standing{known: responder.Value.Issuer == by.serial}, nil
	case !errors.Is(err, storage.ErrNotFound):
		return standing{}, err
	}
	record, err := certificatesTable().Get(ctx, a.cfg.Store, serial)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return standing{}, nil
	case err != nil:
		return standing{}, err
	case record.Value.Issuer != by.serial:
		return standing{}, nil
	}
	key, err := keysTable().Get(ctx, a.cfg.Store, record.Value.SPKI)
	if err != nil {
		return standing{}, fmt.Errorf("the key of the certificate %s: %w", serial, err)
	}
	if record.Value.Lineage == "" {
		return leafStanding(record.Value, nil, &key.Value), nil
	}
	line, err := lineagesTable().Get(ctx, a.cfg.Store, record.Value.Lineage)
	if err != nil {
		return standing{}, fmt.Errorf("the lineage of the certificate %s: %w", serial, err)
	}
	return leafStanding(record.Value, &line.Value, &key.Value), nil
}

// unavailable tells whether an error will pass by itself: sealed, a clock that is not believed, a store that is busy.
func unavailable(err error) bool {
	kind := countersign.AsError(storeError(err)).Kind
	return kind == countersign.Unavailable
}

// keyName is an issuer's subject key identifier as paths and metrics name it.
func keyName(i issuer) string { return hex.EncodeToString(i.cert.SubjectKeyId) }
