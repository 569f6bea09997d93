"""Large messages between MCP peers, over each transport of the client and each of the server."""

import json
from typing import Final

import anyio
import pytest
from harness.raw_pair import ODD, Pair, beside_id, result
from harness.raw_text import large, notification, play, request, say
from harness.wire import raw_members

pytestmark = pytest.mark.anyio

TWO_MIB: Final = 2 * 1024 * 1024


async def test_large_messages_go_both_ways(pair: Pair) -> None:
    async with pair.client() as client:
        sent = request(b"1", "x-large", b'{"text":"%s","x-odd":%s}' % (b"\\u0061" * (TWO_MIB // 6), ODD))
        echo = raw_members(result(await client.request(sent))["echo"])
        assert beside_id(echo) == beside_id(raw_members(sent))

        told = say(notification("notifications/message", b'{"level":"info","data":1}'))
        for steps in ((large(TWO_MIB),), (told, large(TWO_MIB))):
            content = result(await client.request(play(b"1", *steps)))["content"]
            assert json.loads(content)[0]["text"] == "x" * TWO_MIB
        await client.told("notifications/message")


async def test_large_messages_cross_each_other(pair: Pair) -> None:
    sent = [request(spelled, "x-large", b'{"text":"%s"}' % (b"x" * (TWO_MIB // 2))) for spelled in (b"1", b'"1"', b"0")]
    async with pair.client() as client:
        async with anyio.create_task_group() as tasks:
            for text in sent:
                tasks.start_soon(client.send, text)
        for text in sent:
            answer = await client.response(raw_members(text)["id"])
            assert beside_id(raw_members(result(answer)["echo"])) == beside_id(raw_members(text))
