// An application that uses the AWS SDK for JavaScript v3 with its defaults: see ../src/sdk.rs for the commands and
// what is printed.

import { createHash } from "node:crypto";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

// The packages are not beside this file but in the cache.
const require = createRequire(`${process.env.ROLECALL_NODE_MODULES}/`);
const { GetCallerIdentityCommand, STSClient } = require("@aws-sdk/client-sts");

const commands = {
  async credentials() {
    const { fromNodeProviderChain } = require("@aws-sdk/credential-providers");
    await report(async () => described(await fromNodeProviderChain()()));
  },

  async identity(endpoint) {
    await report(caller(endpoint));
  },

  async refresh(endpoint, seconds, beyond = 0) {
    const started = Date.now();
    const deadline = started + Number(seconds) * 1000;
    const call = caller(endpoint);
    const first = await report(call);
    while (!first.error && Date.now() < deadline) {
      await sleep(100);
      const answer = await answerTo(call);
      const enough = answer.error || started + Number(beyond) * 1000 <= Date.now();
      if (enough && answer.access_key_id !== first.access_key_id) {
        console.log(JSON.stringify(answer));
        return;
      }
    }
  },
};

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

async function report(ask) {
  const answer = await answerTo(ask);
  console.log(JSON.stringify(answer));
  return answer;
}

async function answerTo(ask) {
  const started = performance.now();
  let answer;
  try {
    answer = await ask();
  } catch (error) {
    // Whatever an application would see is what the test is about.
    answer = { error: `${error.name}: ${error.message}` };
  }
  return { ...answer, elapsed_seconds: (performance.now() - started) / 1000 };
}

function sha256(text) {
  return createHash("sha256").update(text).digest("hex");
}

const [command, ...args] = process.argv.slice(2);
await commands[command](...args);
