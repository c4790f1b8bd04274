// Package echoverify is the middleware of sts/verify for echo. It never decides anything itself: the verifier does, and its
// answers are the verifier's. It is apart so that who does not use echo does not pay for it.
package echoverify

import (
	"github.com/labstack/echo/v4"

	"github.com/countersign/countersign/sts/verify"
)

// Middleware lets requests with a good token through, and answers all others as [verify.Verifier.Refuse] does.
func Middleware(v *verify.Verifier) echo.MiddlewareFunc { return RequireScope(v) }

// RequireScope is Middleware that also demands all of these scopes. It may stand within Middleware, on a group or a route,
// or by itself.
func RequireScope(v *verify.Verifier, scopes ...string) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			r := c.Request()
			claims, err := v.VerifyRequest(r)
			if err == nil {
				err = claims.RequireScope(scopes...)
			}
			if err != nil {
				v.Refuse(c.Response(), err)
				return nil // it is answered: an error handler would say more than the client may know
			}
			c.SetRequest(r.WithContext(v.NewContext(r, claims)))
			return next(c)
		}
	}
}

// Claims finds the claims of the request's token; false: no middleware has verified the request.
func Claims(c echo.Context) (*verify.Claims, bool) { return verify.FromContext(c.Request().Context()) }
