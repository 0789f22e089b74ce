"""What the applications in Python do alike: see ../src/sdk.rs for the commands and what is printed.

Each has a caller, made of an endpoint, that keeps one client: its `call` returns who STS says that it is, and the key
that the request was signed with.
"""

import json
import sys
import time


def main(make_caller, **others):
    """Runs the command of the command line, of which `others` are those that not every application has."""
    commands = {"identity": identity, "refresh": refresh}
    command, *arguments = sys.argv[1:]
    if command in others:
        others[command](*arguments)
    else:
        commands[command](make_caller, *arguments)


def identity(make_caller, endpoint):
    report(make_caller(endpoint).call)


def refresh(make_caller, endpoint, seconds, beyond=0):
    started = time.monotonic()
    deadline = started + float(seconds)
    caller = make_caller(endpoint)
    first = report(caller.call)
    while "error" not in first and time.monotonic() < deadline:
        time.sleep(0.1)
        answer = answer_to(caller.call)
        enough = "error" in answer or started + float(beyond) <= time.monotonic()
        if enough and answer.get("access_key_id") != first["access_key_id"]:
            print(json.dumps(answer))
            return


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


def key_of(authorization):
    """The access key id in a header of Signature Version 4."""
    return authorization.split("Credential=")[1].split("/")[0]
