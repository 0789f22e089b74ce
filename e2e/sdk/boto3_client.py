"""An application that uses boto3 with its defaults: see ../src/sdk.rs for the commands and what is printed."""

import hashlib

import boto3
from application import key_of, main, report


def credentials():
    report(lambda: described(boto3.Session().get_credentials()))


class Caller:
    """A client that notes which key its last request was signed with: what the session has may be newer."""

    def __init__(self, endpoint):
        self.endpoint = endpoint
        self.client = None
        self.signed_with = None

    def call(self):
        # Making the client already asks for credentials, so it belongs to what is reported.
        if self.client is None:
            self.client = boto3.Session().client("sts", endpoint_url=self.endpoint)
            self.client.meta.events.register("before-send.sts", self.note_key)
        arn = self.client.get_caller_identity()["Arn"]
        return {"arn": arn, "access_key_id": self.signed_with}

    def note_key(self, request, **_):
        authorization = request.headers["Authorization"]
        if isinstance(authorization, bytes):
            authorization = authorization.decode()
        self.signed_with = key_of(authorization)


def described(found):
    if found is None:
        raise LookupError("the default chain has no credentials")
    frozen = found.get_frozen_credentials()
    # The only place where botocore keeps it; static credentials have none.
    expiry = getattr(found, "_expiry_time", None)
    return {
        "access_key_id": frozen.access_key,
        "secret_sha256": sha256(frozen.secret_key),
        "token_sha256": sha256(frozen.token) if frozen.token else None,
        "expires_at": expiry and expiry.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


main(Caller, credentials=credentials)
