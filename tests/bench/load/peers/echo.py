"""An MCP server of FastMCP's with one tool that says what it was told, without sessions, at its fastest.

    echo.py PORT
"""

import sys

from fastmcp import FastMCP

server = FastMCP("echo")


@server.tool
async def echo(text: str) -> str:
    """Says it again"""
    return text


# uvicorn takes uvloop and httptools where they are installed.
server.run(
    transport="http",
    host="127.0.0.1",
    port=int(sys.argv[1]),
    path="/mcp",
    stateless_http=True,
    json_response=True,
    host_origin_protection=False,
    show_banner=False,
    log_level="error",
    uvicorn_config={"access_log": False},
)
