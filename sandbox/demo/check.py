"""Gets credentials the way any program with boto3 does, and asks STS whose they are."""

import json

import boto3

session = boto3.Session()
method = session.get_credentials().method
if method != "container-role":
    raise SystemExit(f"credentials come from {method}, not from the container credentials endpoint")
identity = session.client("sts").get_caller_identity()
print(json.dumps({name: identity[name] for name in ("Account", "Arn", "UserId")}))
