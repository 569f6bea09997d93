// The TypeScript SDK's client, driven by a scenario (see clients.Scenario): JSON on stdin, the outcome as JSON on stdout.
// Run: TRUNKLINE_NODE_MODULES=…/node_modules node client.mjs < scenario.json

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// The packages stand wherever the test set-up put them, so they are resolved from there and not from this file.
const require = createRequire(process.env.TRUNKLINE_NODE_MODULES + "/");
const sdk = (name) => import(pathToFileURL(require.resolve(`@modelcontextprotocol/sdk/${name}`)).href);
const { Client } = await sdk("client/index.js");
const { SSEClientTransport } = await sdk("client/sse.js");
const { StreamableHTTPClientTransport } = await sdk("client/streamableHttp.js");
const { WebSocketClientTransport } = await sdk("client/websocket.js");
const { CreateMessageRequestSchema, ElicitRequestSchema, ListRootsRequestSchema, McpError } = await sdk("types.js");

const scenario = JSON.parse(await new Response(process.stdin).text());
const answers = scenario.answers ?? {};
const outcome = { results: [], notifications: [], progress: [], asked: [] };

const capabilities = {};
for (const kind of Object.keys(answers)) capabilities[kind] = {};
const client = new Client({ name: "typescript", version: "1" }, { capabilities });

if ("elicitation" in answers) {
  client.setRequestHandler(ElicitRequestSchema, (request) => {
    outcome.asked.push([request.method, request.params.message]);
    return { action: "accept", content: answers.elicitation };
  });
}
if ("sampling" in answers) {
  client.setRequestHandler(CreateMessageRequestSchema, (request) => {
    outcome.asked.push([request.method, request.params.messages[0].content.text]);
    return { role: "assistant", model: "test", content: { type: "text", text: answers.sampling } };
  });
}
if ("roots" in answers) {
  client.setRequestHandler(ListRootsRequestSchema, (request) => {
    outcome.asked.push([request.method, null]);
    return { roots: answers.roots.map((uri) => ({ uri })) };
  });
}

let noticed = () => {};
client.fallbackNotificationHandler = async (notification) => {
  outcome.notifications.push([notification.method, notification.params ?? null]);
  noticed();
};

async function call({ tool, arguments: given }) {
  const onprogress = ({ progress, total, message }) => outcome.progress.push([progress, total ?? null, message ?? null]);
  try {
    const result = await client.callTool({ name: tool, arguments: given ?? {} }, undefined, { onprogress });
    return {
      text: result.content.filter((block) => block.type === "text").map((block) => block.text).join(""),
      structured: result.structuredContent ?? null,
      failed: result.isError ?? false,
    };
  } catch (error) {
    if (!(error instanceof McpError)) throw error;
    return { error: { code: error.code, message: error.message } };
  }
}

const url = new URL(scenario.url);
const requestInit = { headers: scenario.headers ?? {} };
const transport = {
  http: () => new StreamableHTTPClientTransport(url, { requestInit }),
  sse: () => new SSEClientTransport(url, { requestInit }),
  websocket: () => new WebSocketClientTransport(url),
}[scenario.transport ?? "http"]();
await client.connect(transport);
outcome.revision = transport.protocolVersion ?? null;
for (const uri of scenario.subscribe ?? []) await client.subscribeResource({ uri });

const calls = (scenario.calls ?? []).flatMap((one) => Array(one.times ?? 1).fill(one));
if (scenario.concurrent) {
  outcome.results = await Promise.all(calls.map(call));
} else {
  for (const one of calls) outcome.results.push(await call(one));
}

const wanted = scenario.await_notifications ?? 0;
const late = setTimeout(() => { throw new Error(`only ${outcome.notifications.length} notifications`); }, 10_000);
while (outcome.notifications.length < wanted) await new Promise((resolve) => { noticed = resolve; });
clearTimeout(late);

outcome.session = transport.sessionId ?? null;
if ((scenario.terminate ?? true) && transport.terminateSession) await transport.terminateSession();
await client.close();
process.stdout.write(JSON.stringify(outcome));
