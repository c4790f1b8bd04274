package api

import (
	"net/http"

	"github.com/countersign/countersign/api/wire"
)

// jwtSVID makes a JWT-SVID of the calling service. It is a credential: nobody may keep the answer.
func (s *Server) jwtSVID(rq *request) error {
	var in wire.JWTSVIDRequest
	if err := rq.decodeJSON(&in); err != nil {
		return err
	}
	made, err := s.STS.SVID(rq.Request().Context(), rq.caller, in.Audience)
	if err != nil {
		return err
	}
	rq.Response().Header().Set("Cache-Control", "no-store")
	return rq.answer(http.StatusOK, wire.JWTSVID{SVID: made.Token, ExpiresAt: made.Expires})
}
