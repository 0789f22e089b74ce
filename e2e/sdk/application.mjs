// What the applications in JavaScript do alike: see ../src/sdk.rs for the commands and what is printed.
//
// Each has a `caller`, which makes of an endpoint a function that calls STS with one client, and returns who STS says
// that it is and the key that the request was signed with.

import { setTimeout as sleep } from "node:timers/promises";

// Runs the command of the command line, of which `others` are those that not every application has.
export async function main(caller, others = {}) {
  const commands = {
    identity: (endpoint) => report(caller(endpoint)),
    refresh: (...args) => refresh(caller, ...args),
    ...others,
  };
  const [command, ...args] = process.argv.slice(2);
  await commands[command](...args);
}

async function refresh(caller, endpoint, seconds, beyond = 0) {
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
}

export async function report(ask) {
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
