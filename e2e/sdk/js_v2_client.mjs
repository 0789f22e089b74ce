// An application that uses the AWS SDK for JavaScript v2 with its defaults: see ../src/sdk.rs for what is printed.

import { createRequire } from "node:module";

import { main } from "./application.mjs";

// The packages are not beside this file but in the cache.
const { STS } = createRequire(`${process.env.ROLECALL_NODE_MODULES}/`)("aws-sdk");

// Calls with a client, and says which key the request was signed with: what its provider has may be newer.
function caller(endpoint) {
  const client = new STS({ endpoint });
  return async () => {
    const request = client.getCallerIdentity();
    const { Arn } = await request.promise();
    const [, signedWith] = request.httpRequest.headers.Authorization.match(/Credential=([^/]+)/);
    return { arn: Arn, access_key_id: signedWith };
  };
}

await main(caller);
