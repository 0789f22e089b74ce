"""An application that uses the AWS Common Runtime, which is that of the SDK for C++, with its defaults: see
../src/sdk.rs for what is printed."""

import io
import re
import urllib.parse

from application import key_of, main
from awscrt.auth import AwsCredentialsProvider, AwsSigningConfig, aws_sign_request
from awscrt.http import HttpClientConnection, HttpHeaders, HttpRequest
from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup

BODY = b"Action=GetCallerIdentity&Version=2011-06-15"

# Its futures have no end of their own, so that a callback that never comes would be waited for without one.
LIMIT_SECONDS = 120


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
        key = key_of(signed.headers.get("Authorization"))
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


main(Caller)
