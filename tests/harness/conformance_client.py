"""The client that the conformance suite starts, with the gateway between: `conformance_client.py SUITE_URL`.

It starts a gateway in front of the suite's server, and calls through it every tool that the server has. What the suite
judges is the gateway's upstream leg.
"""

import sys
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parent.parent))

from harness.gateways import gateway
from harness.wire import Wire


async def main(url: str) -> None:
    """Run the scenario."""
    with gateway(upstreams={"suite": url}) as process:
        async with Wire(process.url("suite")) as wire:
            await wire.open()
            tools = await (await wire.post({"jsonrpc": "2.0", "id": "list", "method": "tools/list"})).response()
            for n, tool in enumerate(tools["result"]["tools"]):
                answer = await wire.call(tool["name"], id=b"%d" % n)
                print(await answer.response(), file=sys.stderr)
            await wire.delete()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
