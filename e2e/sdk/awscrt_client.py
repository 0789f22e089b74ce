"""An application that uses the AWS Common Runtime, which is that of the SDK for C++, with its defaults: see
../src/sdk.rs for what is printed."""

import io
import json
import re
import sys
import time
import urllib.parse

from awscrt.auth import AwsCredentialsProvider, AwsSigningConfig, aws_sign_request
from awscrt.http import HttpClientConnection, HttpHeaders, HttpRequest
from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup

BODY = b"Action=GetCallerIdentity&Version=2011-06-15"

# Its futures have no end of their own, so that a callback that never comes would be waited for without one.
LIMIT_SECONDS = 120


def main():
    command, *arguments = sys.argv[1:]
    {"refresh": refresh}[command](*arguments)


def refresh(endpoint, seconds, beyond=0):
    started = time.monotonic()
    deadline = started + float(seconds)
    caller = Caller(endpoint)
    first = answer_to(caller.call)
    print(json.dumps(first), flush=True)
    while "error" not in first and time.monotonic() < deadline:
        time.sleep(0.1)
        answer = answer_to(caller.call)
        enough = "error" in answer or started + float(beyond) <= time.monotonic()
        if enough and answer.get("access_key_id") != first["access_key_id"]:
            print(json.dumps(answer))
            return


class Caller:
    """Signs with what the runtime's default chain has, and says which key that was."""

    def __init__(self, endpoint):
        self.endpoint = urllib.parse.urlsplit(endpoint)
        loops = EventLoopGroup()
        self.bootstrap = ClientBootstrap(loops, DefaultHostResolver(loops))
        self.provider = None

    def call(self):
        if self.provider is None:
            self.provider = AwsCredentialsProvider.new_default_chain(self.bootstrap)
        headers = HttpHeaders(
            [
                ("Host", self.endpoint.netloc),
                ("Content-Type", "application/x-www-form-urlencoded"),
                ("Content-Length", str(len(BODY))),
            ]
        )
        request = HttpRequest("POST", "/", headers, io.BytesIO(BODY))
        config = AwsSigningConfig(credentials_provider=self.provider, region="us-east-1", service="sts")
        signed = aws_sign_request(request, config).result(LIMIT_SECONDS)
        key = signed.headers.get("Authorization").split("Credential=")[1].split("/")[0]
        status, text = self.send(signed)
        if status != 200:
            raise RuntimeError(f"{status} {text}")
        return {"arn": re.search("<Arn>([^<]+)</Arn>", text)[1], "access_key_id": key}

    def send(self, request):
        connection = HttpClientConnection.new(self.endpoint.hostname, self.endpoint.port, self.bootstrap)
        body = bytearray()
        stream = connection.result(LIMIT_SECONDS).request(
            request, on_body=lambda http_stream, chunk, **_: body.extend(chunk)
        )
        stream.activate()
        status = stream.completion_future.result(LIMIT_SECONDS)
        return status, body.decode()


def answer_to(ask):
    started = time.monotonic()
    try:
        answer = ask()
    except Exception as error:  # Whatever an application would see is what the test is about.
        answer = {"error": f"{type(error).__name__}: {error}"}
    return {**answer, "elapsed_seconds": time.monotonic() - started}


main()
