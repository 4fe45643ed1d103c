"""Calls one tool of a gateway over MCP, with nothing but Python's own library.

    mcp.py URL TOOL ARGUMENTS_AS_JSON

Revision 2026-07-28 of the protocol is stateless: one POST is a whole conversation. What is asked goes to stderr for
people to see, the tool's structured result to stdout for programs.
"""

import json
import sys
import urllib.error
import urllib.request

VERSION = "2026-07-28"


def call(url: str, tool: str, arguments: dict) -> dict:
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {
            "name": tool,
            "arguments": arguments,
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": VERSION,
                "io.modelcontextprotocol/clientInfo": {"name": "drydock-demo", "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": {},
            },
        },
    }
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": VERSION,
        "Mcp-Method": "tools/call",
        "Mcp-Name": tool,
    }
    show(url, headers, body)
    request = urllib.request.Request(f"{url}/mcp", json.dumps(body).encode(), headers)
    # The gateway is on this machine: a proxy would not find it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as response:
            return answer(response.headers.get_content_type(), response.read().decode())
    except urllib.error.HTTPError as error:
        sys.exit(f"{url}/mcp answered {error.code}: {error.read().decode(errors='replace')}")


def show(url: str, headers: dict, body: dict) -> None:
    """What is said over and over again, in the headers and the request's envelope, is left to the code above."""
    lines = [f"POST {url}/mcp   {headers['Mcp-Method']} {headers['Mcp-Name']}"]
    lines += json.dumps(body["params"]["arguments"], indent=2).splitlines()
    print("\n".join(f"    {line}" for line in lines), end="\n\n", file=sys.stderr)


def answer(content_type: str, text: str) -> dict:
    """The JSON-RPC answer: the body itself, or the last message of an event stream."""
    if content_type == "text/event-stream":
        text = [line[5:] for line in text.splitlines() if line.startswith("data:") and line[5:].strip()][-1]
    return json.loads(text)


def main() -> None:
    url, tool, arguments = sys.argv[1:]
    message = call(url, tool, json.loads(arguments))
    result = message.get("result")
    if result is None or result.get("isError"):
        sys.exit(f"{tool} was refused: {json.dumps(message.get('error') or result, indent=2)}")
    print(json.dumps(result["structuredContent"]))


if __name__ == "__main__":
    main()
