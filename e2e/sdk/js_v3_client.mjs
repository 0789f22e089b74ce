// An application that uses the AWS SDK for JavaScript v3 with its defaults: see ../src/sdk.rs for the commands and
// what is printed.

import { createHash } from "node:crypto";
import { createRequire } from "node:module";

import { main, report } from "./application.mjs";

// The packages are not beside this file but in the cache.
const require = createRequire(`${process.env.ROLECALL_NODE_MODULES}/`);
const { GetCallerIdentityCommand, STSClient } = require("@aws-sdk/client-sts");

async function credentials() {
  const { fromNodeProviderChain } = require("@aws-sdk/credential-providers");
  await report(async () => described(await fromNodeProviderChain()()));
}

// Calls with a client that notes which key its last request was signed with: what its provider has may be newer.
function caller(endpoint) {
  const client = new STSClient({ endpoint });
  let signedWith;
  const noteKey = (next) => (args) => {
    [, signedWith] = args.request.headers.authorization.match(/Credential=([^/]+)/);
    return next(args);
  };
  client.middlewareStack.add(noteKey, { step: "deserialize", name: "noteKey" });
  return async () => {
    const { Arn } = await client.send(new GetCallerIdentityCommand({}));
    return { arn: Arn, access_key_id: signedWith };
  };
}

function described(found) {
  return {
    access_key_id: found.accessKeyId,
    secret_sha256: sha256(found.secretAccessKey),
    token_sha256: found.sessionToken ? sha256(found.sessionToken) : null,
    expires_at: found.expiration ? found.expiration.toISOString().replace(".000Z", "Z") : null,
  };
}

function sha256(text) {
  return createHash("sha256").update(text).digest("hex");
}

await main(caller, { credentials });
