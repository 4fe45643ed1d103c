// Uses a running gateway as a client of the Node SDK does (npm @modelcontextprotocol/sdk 1.32.2).
//
//     node mcp_node.mjs URL MODEL DATASET
//
// URL is the gateway's MCP endpoint; MODEL and DATASET are names from its stores. Exits with 1 at the first thing that
// is not as it should be. The SDK is looked for beside this file, or where NODE_PATH cannot reach, beside a copy of it;
// tests/interop/tools.json below the folder that it is started in.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const TOOLS = JSON.parse(readFileSync("tests/interop/tools.json", "utf8"));
const DONE = ["succeeded", "failed", "cancelled"];

const [url, model, dataset] = process.argv.slice(2);
if (!dataset) {
  console.error("usage: mcp_node.mjs URL MODEL DATASET");
  process.exit(2);
}

const client = new Client({ name: "drydock-interop", version: "1" });
await client.connect(new StreamableHTTPClientTransport(new URL(url)));

// The structured answer of a tool that must not fail. The SDK has checked it against the tool's output schema.
async function call(name, args, options) {
  const result = await client.callTool({ name, arguments: args }, undefined, options);
  assert.ok(!result.isError, `${name}: ${JSON.stringify(result.content)}`);
  assert.ok(result.content[0]?.text, `${name} says nothing to people`);
  return result.structuredContent;
}

// The job when it is done, and the progress that was heard meanwhile.
async function wait(id) {
  const heard = [];
  for (let round = 0; round < 40; round += 1) {
    const view = await call("wait_for_job", { id }, { onprogress: (news) => heard.push(news) });
    if (DONE.includes(view.state)) return [view, heard];
  }
  assert.fail(`job ${id} does not end`);
}

const { tools } = await client.listTools();
assert.deepEqual(tools.map((tool) => tool.name).sort(), TOOLS);
for (const tool of tools) assert.ok(tool.outputSchema && tool.annotations && tool.description, tool.name);

const small = {
  model, dataset, max_steps: 3, per_device_train_batch_size: 1, max_seq_length: 48, lora_r: 4, test_size: 0.1,
  logging_steps: 1,
};
const wrong = await client.callTool({ name: "finetune", arguments: { ...small, lora_rank: 4 } });
assert.ok(wrong.isError && wrong.content[0].text.includes("lora_r"), JSON.stringify(wrong));

const { plan } = await call("finetune", { ...small, dry_run: true });
assert.ok(plan.estimate.memory_bytes > 0, JSON.stringify(plan));

const idempotency_key = randomUUID();
const first = await call("finetune", { ...small, idempotency_key });
const again = await call("finetune", { ...small, idempotency_key });
assert.deepEqual([first.created, again.created, again.job.id], [true, false, first.job.id]);

const [view, heard] = await wait(first.job.id);
assert.equal(view.state, "succeeded", JSON.stringify(view));
assert.ok(heard.length > 0, "no progress was heard");
const { artifacts } = await call("list_artifacts", { id: first.job.id });
assert.ok(artifacts.some(({ path }) => path.endsWith("adapter_model.safetensors")), JSON.stringify(artifacts));

const long = await call("finetune", { ...small, max_steps: 100_000, num_train_epochs: 10_000 });
await call("cancel_job", { id: long.job.id });
const [cancelled] = await wait(long.job.id);
assert.equal(cancelled.state, "cancelled", JSON.stringify(cancelled));

const tight = await call("finetune", { ...small, limits: { memory_mib: 64 } });
const [failed] = await wait(tight.job.id);
assert.equal(failed.failure?.kind, "out_of_memory", JSON.stringify(failed));
const { remedies } = await call("suggest_remedies", { id: failed.id });
const better = await call("apply_remedy", { id: failed.id, remedy: remedies[0].remedy });
const [mended] = await wait(better.job.id);
assert.deepEqual([mended.state, mended.remedy_of], ["succeeded", failed.id], JSON.stringify(mended));

console.log(
  `mcp_node: ${tools.length} tools, job ${first.job.id} succeeded, ${heard.length} progress notifications, ` +
    `job ${long.job.id} cancelled, \`${remedies[0].remedy}\` helped`,
);
await client.close();
