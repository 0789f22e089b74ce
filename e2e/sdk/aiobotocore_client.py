"""An application that uses aiobotocore with its defaults: see ../src/sdk.rs for the commands and what is printed."""

import asyncio
import contextlib
import json
import sys
import time

from aiobotocore.session import get_session


async def main():
    command, *arguments = sys.argv[1:]
    async with contextlib.AsyncExitStack() as stack:
        await {"identity": identity, "refresh": refresh}[command](stack, *arguments)


async def identity(stack, endpoint):
    print(json.dumps(await answer_to(Caller(stack, endpoint).call)))


async def refresh(stack, endpoint, seconds, beyond=0):
    started = time.monotonic()
    deadline = started + float(seconds)
    caller = Caller(stack, endpoint)
    first = await answer_to(caller.call)
    print(json.dumps(first), flush=True)
    while "error" not in first and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
        answer = await answer_to(caller.call)
        enough = "error" in answer or started + float(beyond) <= time.monotonic()
        if enough and answer.get("access_key_id") != first["access_key_id"]:
            print(json.dumps(answer))
            return


class Caller:
    """A client that notes which key its last request was signed with: what the session has may be newer."""

    def __init__(self, stack, endpoint):
        self.stack = stack
        self.endpoint = endpoint
        self.client = None
        self.signed_with = None

    async def call(self):
        # Making the client already asks for credentials, so it belongs to what is reported.
        if self.client is None:
            made = get_session().create_client("sts", endpoint_url=self.endpoint)
            self.client = await self.stack.enter_async_context(made)
            self.client.meta.events.register("before-send.sts", self.note_key)
        arn = (await self.client.get_caller_identity())["Arn"]
        return {"arn": arn, "access_key_id": self.signed_with}

    def note_key(self, request, **_):
        authorization = request.headers["Authorization"]
        if isinstance(authorization, bytes):
            authorization = authorization.decode()
        self.signed_with = authorization.split("Credential=")[1].split("/")[0]


async def answer_to(ask):
    started = time.monotonic()
    try:
        answer = await ask()
    except Exception as error:  # Whatever an application would see is what the test is about.
        answer = {"error": f"{type(error).__name__}: {error}"}
    return {**answer, "elapsed_seconds": time.monotonic() - started}


asyncio.run(main())
