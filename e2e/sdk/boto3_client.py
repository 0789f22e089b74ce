"""An application that uses boto3 with its defaults: see ../src/sdk.rs for the commands and what is printed."""

import hashlib
import json
import sys
import time

import boto3


def main():
    command, *arguments = sys.argv[1:]
    commands = {"credentials": credentials, "identity": identity, "refresh": refresh}
    commands[command](*arguments)


def credentials():
    report(lambda: described(boto3.Session().get_credentials()))


def identity(endpoint):
    report(Caller(endpoint).call)


def refresh(endpoint, seconds, beyond=0):
    started = time.monotonic()
    deadline = started + float(seconds)
    caller = Caller(endpoint)
    first = report(caller.call)
    while "error" not in first and time.monotonic() < deadline:
        time.sleep(0.1)
        answer = answer_to(caller.call)
        enough = "error" in answer or started + float(beyond) <= time.monotonic()
        if enough and answer.get("access_key_id") != first["access_key_id"]:
            print(json.dumps(answer))
            return


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
        self.signed_with = authorization.split("Credential=")[1].split("/")[0]


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


def report(ask):
    answer = answer_to(ask)
    print(json.dumps(answer), flush=True)
    return answer


def answer_to(ask):
    started = time.monotonic()
    try:
        answer = ask()
    except Exception as error:  # Whatever an application would see is what the test is about.
        answer = {"error": f"{type(error).__name__}: {error}"}
    return {**answer, "elapsed_seconds": time.monotonic() - started}


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


main()
