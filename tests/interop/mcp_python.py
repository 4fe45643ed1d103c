#!/usr/bin/env python3
"""Uses a running gateway as a client of the Python SDK does (PyPI `mcp` 2.3.0), in both eras of the protocol.

    mcp_python.py URL MODEL DATASET
    mcp_python.py "stdio:drydock stdio" MODEL DATASET

URL is the gateway's MCP endpoint, or the command that a host would start; MODEL and DATASET are names from its stores.
Exits with 1 at the first thing that is not as it should be.
"""

import asyncio
import json
import os
import shlex
import sys
import uuid
from pathlib import Path

from mcp import Client, StdioServerParameters

TOOLS = set(json.loads(Path(__file__).with_name("tools.json").read_text()))
DONE = {"succeeded", "failed", "cancelled"}


def expect(condition, told):
    if not condition:
        sys.exit(f"mcp_python: {told}")


async def call(client, tool, **arguments):
    """The structured answer of a tool that must not fail."""
    result = await client.call_tool(tool, arguments)
    expect(not result.is_error, f"{tool}: {result.content}")
    expect(result.content and result.content[0].text, f"{tool} says nothing to people")
    return result.structured_content


async def wait(client, job):
    """The job when it is done, and the progress that was heard meanwhile."""
    heard = []

    async def progress(done, total, message):
        heard.append((done, total, message))

    for _ in range(40):
        result = await client.call_tool("wait_for_job", {"id": job}, progress_callback=progress)
        expect(not result.is_error, f"wait_for_job: {result.content}")
        view = result.structured_content
        if view["state"] in DONE:
            return view, heard
    sys.exit(f"mcp_python: job {job} does not end: {view}")


def server(address):
    """What the SDK connects to."""
    if not address.startswith("stdio:"):
        return address
    command, *arguments = shlex.split(address.removeprefix("stdio:"))
    return StdioServerParameters(command=command, args=arguments, env=dict(os.environ))


async def use(address, model, dataset, mode):
    small = {
        "model": model, "dataset": dataset, "max_steps": 3, "per_device_train_batch_size": 1, "max_seq_length": 48,
        "lora_r": 4, "test_size": 0.1, "logging_steps": 1,
    }
    async with Client(server(address), mode=mode) as client:
        listed = await client.list_tools()
        names = {tool.name for tool in listed.tools}
        expect(names == TOOLS, f"the tools are {sorted(names)}")
        for tool in listed.tools:
            expect(tool.output_schema and tool.annotations and tool.description, f"{tool.name} is not described")

        wrong = await client.call_tool("finetune", {**small, "lora_rank": 4})
        expect(wrong.is_error and "lora_r" in wrong.content[0].text, f"a wrong option: {wrong}")

        models = await call(client, "list_models")
        expect(model in [one["name"] for one in models["models"]], f"list_models: {models}")
        plan = await call(client, "finetune", **small, dry_run=True)
        expect(plan["plan"]["estimate"]["memory_bytes"] > 0 and "job" not in plan, f"the plan: {plan}")

        key = str(uuid.uuid4())
        first = await call(client, "finetune", **small, idempotency_key=key)
        again = await call(client, "finetune", **small, idempotency_key=key)
        job = first["job"]["id"]
        expect((first["created"], again["created"]) == (True, False), f"created: {first} {again}")
        expect(again["job"]["id"] == job, "the same key gave another job")

        view, heard = await wait(client, job)
        expect(view["state"] == "succeeded", f"job {job}: {view}")
        done = [progress for progress, _, _ in heard]
        expect(done, "no progress was heard")
        expect(all(message for _, _, message in heard), f"progress without words: {heard}")

        metrics = await call(client, "get_metrics", id=job)
        expect([point["step"] for point in metrics["metrics"]] == [1, 2, 3], f"the metrics: {metrics}")
        logs = await call(client, "get_logs", id=job)
        expect(logs["lines"][-1]["seq"] == view["seq"], f"the log ends elsewhere: {logs}")
        made = await call(client, "list_artifacts", id=job)
        paths = [artifact["path"] for artifact in made["artifacts"]]
        expect(any(path.endswith("adapter_model.safetensors") for path in paths), f"the artifacts: {paths}")

        long = await call(client, "finetune", **{**small, "max_steps": 100_000, "num_train_epochs": 10_000})
        await call(client, "cancel_job", id=long["job"]["id"])
        view, _ = await wait(client, long["job"]["id"])
        expect(view["state"] == "cancelled", f"the job that was cancelled: {view}")
        tight = await call(client, "finetune", **small, limits={"memory_mib": 64})
        view, _ = await wait(client, tight["job"]["id"])
        expect(view["state"] == "failed", f"the job without room: {view}")
        why = await call(client, "explain_failure", id=view["id"])
        expect(why["failure"]["kind"] == "out_of_memory", f"the explanation: {why}")
        offered = await call(client, "suggest_remedies", id=view["id"])
        remedy = offered["remedies"][0]["remedy"]
        better = await call(client, "apply_remedy", id=view["id"], remedy=remedy)
        view, _ = await wait(client, better["job"]["id"])
        expect((view["state"], view["remedy_of"]) == ("succeeded", tight["job"]["id"]), f"after `{remedy}`: {view}")

        listing = await call(client, "list_jobs", state=["cancelled"])
        expect(long["job"]["id"] in [one["id"] for one in listing["jobs"]], "the cancelled job is not listed")
        print(f"mcp_python: {client.protocol_version}: {len(names)} tools, job {job} succeeded, {len(done)} progress "
              f"notifications, job {long['job']['id']} cancelled, `{remedy}` helped")


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    for mode in ("legacy", "auto"):
        asyncio.run(use(*sys.argv[1:], mode))


main()
