// Other people's OAuth libraries for JavaScript, as a child of cmd/countersign's tests: one JSON object a line on standard input,
// {"id", "with", "token"}, one a line on standard output, {"id", "error"?, "token"?}. openid-client obtains a token for the subject
// token that it is given; jose and oauth4webapi verify.
import { readFileSync } from 'node:fs'
import { request } from 'node:https'
import { createInterface } from 'node:readline'
import { webcrypto } from 'node:crypto'

globalThis.crypto ??= webcrypto // Node 18
const [jose, oauth, openid] = await Promise.all([import('jose'), import('oauth4webapi'), import('openid-client')])
const { issuer, audience, client, certificate, key, ca } = JSON.parse(process.env.VERIFIER)
const keys = new URL(issuer + '/.well-known/jwks.json')

// What the JWKS's Cache-Control allows; each library has a setting of its own for it and reads none of it.
const maxAge = 1000 * /max-age=(\d+)/.exec((await fetch(keys)).headers.get('cache-control'))[1]

const set = jose.createRemoteJWKSet(keys, { cacheMaxAge: maxAge, cooldownDuration: maxAge / 2 })

// oauth4webapi keeps keys as long as the metadata that it discovered.
let server, discovered
async function metadata() {
  if (server === undefined || Date.now() >= discovered + maxAge) {
    discovered = Date.now()
    const url = new URL(issuer)
    server = oauth.discoveryRequest(url, { algorithm: 'oauth2' }).then((response) => oauth.processDiscoveryResponse(url, response))
  }
  return server
}

// Node's fetch knows no client certificate, so openid-client gets one that does.
function fetchAs(url, { method, headers, body, signal }) {
  const options = { method, headers: Object.fromEntries(new Headers(headers)), signal, cert: readFileSync(certificate), key: readFileSync(key), ca: readFileSync(ca) }
  return new Promise((resolve, reject) => {
    const rq = request(url, options, (response) => {
      const parts = []
      response.on('data', (part) => parts.push(part))
      response.on('error', reject)
      response.on('end', () => resolve(new Response(Buffer.concat(parts), { status: response.statusCode, headers: response.headers })))
    })
    rq.on('error', reject)
    rq.end(body?.toString())
  })
}
const configuration = await openid.discovery(new URL(issuer), client, undefined, openid.TlsClientAuth(), {
  algorithm: 'oauth2', [openid.customFetch]: fetchAs,
})

const libraries = {
  async jose({ token }) {
    await jose.jwtVerify(token, set, {
      issuer, audience, typ: 'at+jwt', algorithms: ['ES256'], requiredClaims: ['iss', 'exp', 'aud', 'sub', 'client_id', 'iat', 'jti'],
    })
  },
  async oauth4webapi({ token }) {
    const rq = new Request('https://' + audience + '/', { headers: { authorization: 'Bearer ' + token } })
    await oauth.validateJwtAccessToken(await metadata(), rq, audience, { signingAlgorithms: ['ES256'] })
  },
  async 'openid-client'({ token }) {
    const answer = await openid.genericGrantRequest(configuration, 'urn:ietf:params:oauth:grant-type:token-exchange', {
      subject_token: token, subject_token_type: 'urn:ietf:params:oauth:token-type:access_token', audience,
    })
    if (answer.issued_token_type !== 'urn:ietf:params:oauth:token-type:access_token' || answer.token_type !== 'bearer') {
      throw new Error('got ' + answer.issued_token_type + ' ' + answer.token_type)
    }
    return answer.access_token
  },
}

console.log(JSON.stringify({ id: 0 }))
for await (const line of createInterface({ input: process.stdin })) {
  const rq = JSON.parse(line)
  libraries[rq.with](rq).then(
    (token) => console.log(JSON.stringify({ id: rq.id, token })),
    (error) => console.log(JSON.stringify({ id: rq.id, error: String(error) + (error.cause ? ' ' + JSON.stringify(error.cause) : '') || 'an error without words' })),
  )
}
