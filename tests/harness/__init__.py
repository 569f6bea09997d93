"""Real peers to test trunkline with: MCP servers, MCP clients, a scriptable server, and raw wires.

Modules that a server process imports (`ports`, `recorder`, `upstream_*`) need only the standard library, anyio,
uvicorn and the MCP SDK of that process, so that they run under either SDK line.
"""
