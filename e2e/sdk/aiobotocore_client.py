"""An application that uses aiobotocore with its defaults: see ../src/sdk.rs for the commands and what is printed."""

import asyncio

from aiobotocore.session import get_session
from application import key_of, main


class Caller:
    """A client that notes which key its last request was signed with: what the session has may be newer."""

    def __init__(self, endpoint):
        self.endpoint = endpoint
        # One event loop for all calls, for the client belongs to it.
        self.runner = asyncio.Runner()
        self.client = None
        self.signed_with = None

    def call(self):
        return self.runner.run(self.call_in_loop())

    async def call_in_loop(self):
        # Making the client already asks for credentials, so it belongs to what is reported.
        if self.client is None:
            made = get_session().create_client("sts", endpoint_url=self.endpoint)
            self.client = await made.__aenter__()
            self.client.meta.events.register("before-send.sts", self.note_key)
        arn = (await self.client.get_caller_identity())["Arn"]
        return {"arn": arn, "access_key_id": self.signed_with}

    def note_key(self, request, **_):
        authorization = request.headers["Authorization"]
        if isinstance(authorization, bytes):
            authorization = authorization.decode()
        self.signed_with = key_of(authorization)


main(Caller)
