// An MCP server of the TypeScript SDK with one tool that says what it was told, without sessions, at its fastest.
//
//     node echo.mjs PORT

import { createServer } from "node:http";

import { toNodeHandler } from "@modelcontextprotocol/node";
import { McpServer, createMcpHandler } from "@modelcontextprotocol/server";
import { z } from "zod";

// The SDK makes a server for every request of a handler without sessions; what can be made once is made once.
const echo = { description: "Says it again", inputSchema: z.object({ text: z.string() }) };

function server() {
  const server = new McpServer({ name: "echo", version: "1.0.0" });
  server.registerTool("echo", echo, async ({ text }) => ({ content: [{ type: "text", text }] }));
  return server;
}

const handler = createMcpHandler(server, { responseMode: "json" });
createServer(toNodeHandler(handler)).listen(Number(process.argv[2]), "127.0.0.1");
