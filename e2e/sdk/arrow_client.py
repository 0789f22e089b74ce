"""An application that uses the AWS SDK for C++ as Apache Arrow brings it along, with its defaults: see ../src/sdk.rs for
what is printed.

Arrow calls nothing but S3. The S3 of the tests names its buckets after the caller: what STS would say, and the key that
the request was signed with.
"""

import json
import sys
import time

from pyarrow.fs import FileSelector, S3FileSystem


def main():
    command, *arguments = sys.argv[1:]
    {"identity": identity, "refresh": refresh}[command](*arguments)


def identity(endpoint):
    print(json.dumps(answer_to(Caller(endpoint).call)))


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
    def __init__(self, endpoint):
        self.endpoint = endpoint
        self.files = None

    def call(self):
        # Making it already asks for credentials, so it belongs to what is reported.
        if self.files is None:
            self.files = S3FileSystem(endpoint_override=self.endpoint, region="us-east-1")
        arn, key = [bucket.path for bucket in self.files.get_file_info(FileSelector(""))]
        return {"arn": arn, "access_key_id": key}


def answer_to(ask):
    started = time.monotonic()
    try:
        answer = ask()
    except Exception as error:  # Whatever an application would see is what the test is about.
        answer = {"error": f"{type(error).__name__}: {error}"}
    return {**answer, "elapsed_seconds": time.monotonic() - started}


main()
