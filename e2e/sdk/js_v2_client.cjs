// An application that uses the AWS SDK for JavaScript v2 with its defaults: see ../src/sdk.rs for what is printed.

const { createRequire } = require("node:module");
const { setTimeout: sleep } = require("node:timers/promises");

// The packages are not beside this file but in the cache.
const { STS } = createRequire(`${process.env.ROLECALL_NODE_MODULES}/`)("aws-sdk");

async function refresh(endpoint, seconds, beyond = 0) {
  const started = Date.now();
  const deadline = started + Number(seconds) * 1000;
  const call = caller(endpoint);
  const first = await answerTo(call);
  console.log(JSON.stringify(first));
  while (!first.error && Date.now() < deadline) {
    await sleep(100);
    const answer = await answerTo(call);
    const enough = answer.error || started + Number(beyond) * 1000 <= Date.now();
    if (enough && answer.access_key_id !== first.access_key_id) {
      console.log(JSON.stringify(answer));
      return;
    }
  }
}

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

const commands = { refresh };
const [command, ...args] = process.argv.slice(2);
commands[command](...args);
