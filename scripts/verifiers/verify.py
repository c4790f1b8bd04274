"""Authlib as a child of cmd/countersign's tests: one JSON object a line on standard input, {"id", "with", "token"}, one a line
on standard output, {"id", "error"?, "token"?}. "authlib" verifies a token, "authlib-client" obtains one for a subject token.
Keys are fetched again when the JWKS's max-age is over, or when a token names one that is not there."""

import json
import os
import re
import sys
import time

import requests
from authlib.integrations.requests_client import OAuth2Session
from authlib.jose import JsonWebKey, JsonWebToken

config = json.loads(os.environ["VERIFIER"])
issuer, audience = config["issuer"], config["audience"]


class Keys:
    def __init__(self):
        self.session = requests.Session()
        self.good_until = 0

    def fetch(self):
        response = self.session.get(issuer + "/.well-known/jwks.json", verify=config["ca"], timeout=20)
        response.raise_for_status()
        self.set = JsonWebKey.import_key_set(response.json())
        max_age = re.search(r"max-age=(\d+)", response.headers["Cache-Control"])
        self.good_until = time.monotonic() + int(max_age.group(1))

    def find(self, header, payload):
        if time.monotonic() >= self.good_until:
            self.fetch()
        try:
            return self.set.find_by_kid(header["kid"])
        except ValueError:
            self.fetch()
            return self.set.find_by_kid(header["kid"])


keys = Keys()
jwt = JsonWebToken(["ES256"])


def verify(token):
    claims = jwt.decode(token, keys.find, claims_options={
        "iss": {"essential": True, "value": issuer}, "aud": {"essential": True, "value": audience},
        "exp": {"essential": True}, "sub": {"essential": True},
    })
    claims.validate()


def obtain(token):
    session = OAuth2Session(client_id=config["client"], token_endpoint_auth_method="none")
    answer = session.fetch_token(
        issuer + "/oauth2/token", grant_type="urn:ietf:params:oauth:grant-type:token-exchange", subject_token=token,
        subject_token_type="urn:ietf:params:oauth:token-type:access_token", audience=audience,
        cert=(config["certificate"], config["key"]), verify=config["ca"], timeout=20)
    return answer["access_token"]


def main():
    print(json.dumps({"id": 0}), flush=True)
    for line in sys.stdin:
        rq = json.loads(line)
        answer = {"id": rq["id"]}
        try:
            if rq["with"] == "authlib":
                verify(rq["token"])
            else:
                answer["token"] = obtain(rq["token"])
        except Exception as error:  # whatever the library thinks of the token
            answer["error"] = repr(error)
        print(json.dumps(answer), flush=True)


main()
