"""What the pool did, in words: every fixed word has a sentence, and each tells what would change it."""

import re
from typing import get_args

import pytest
from layers import LIBRARY, ROOT
from trunkline.gateway.reasons import ENDS, PARTS, end_told, origin_told, told
from trunkline.mux.account import (
    FIRST,
    FULL,
    OPEN,
    OPENING,
    OWN,
    PER_CALL,
    RETURNED,
    SPARE,
    Decision,
    Difference,
    Origin,
    Part,
    Reason,
    lost,
    refusal,
)
from trunkline.mux.errors import Overloaded, TimedOut
from trunkline.mux.limits import Pooling

LIMITS = Pooling(max_inflight_per_channel=7)
KEY = Decision("miss", "key", differs=(Difference("capabilities", ("experimental", "other")), Difference("revision")))
ALL = (OPEN, *RETURNED.values(), OPENING, OWN, FIRST, KEY, FULL, lost("aged"), SPARE, PER_CALL, refusal(TimedOut("x")))


def test_every_reason_has_its_sentence() -> None:
    assert {decision.reason for decision in ALL} == set(get_args(Reason))
    sentences = [told(decision, LIMITS) for decision in ALL]
    assert len(set(sentences)) == len(ALL)
    assert all(len(sentence) > 20 for sentence in sentences)


def test_every_part_of_a_key_has_its_words() -> None:
    assert set(PARTS) == set(get_args(Part))


@pytest.mark.checkout
def test_every_end_that_the_sources_name_has_its_words() -> None:
    sources = "".join(path.read_text() for folder in LIBRARY for path in (ROOT / folder).rglob("*.py"))
    ended = re.findall(r"""(?:WorkflowEnded|_end_soon|_on_end|\.end|\.fail)\((?:[\w.]+, )?"(\w+)"\)""", sources)
    assert len(set(ended)) > 8
    assert set(ended) <= set(ENDS)


def test_every_end_of_a_workflow_that_the_documentation_names_has_its_words(repository_text: str) -> None:
    causes = re.search(r"The first cause wins: (.*?)\. Its calls", repository_text, re.DOTALL)
    assert causes is not None
    assert set(re.findall(r"`(\w+)`", causes[1])) <= set(ENDS)


@pytest.fixture
def repository_text() -> str:
    """docs/design.md, which names the ends."""
    return (ROOT / "docs/design.md").read_text()


@pytest.mark.parametrize(
    ("decision", "words"),
    [
        (KEY, ["client capabilities (experimental, other)", "the protocol revision"]),
        (FULL, ["max_inflight_per_channel = 7", "raise it"]),
        (lost("session_lost"), ["the server no longer knew the session"]),
        (lost("odd_word"), ["odd word"]),
        (lost(""), ["not known"]),
        (PER_CALL, ['reuse = "none"', '"workflow"']),
        (RETURNED["key"], ["Trunkline-Workflow"]),
        (RETURNED["session_id"], ["Mcp-Session-Id"]),
        (OWN, ['reuse = "workflow"', "Trunkline-Workflow"]),
        (OWN._replace(differs=(Difference("workflow"),)), ['reuse = "user" would share']),
        (OWN._replace(differs=(Difference("client_info"), Difference("workflow"))), ['reuse = "user" would share']),
        (
            OWN._replace(differs=(Difference("session_headers", ("x-tenant",)), Difference("workflow"))),
            ['reuse = "user" would not share', "session headers (x-tenant)"],
        ),
        (refusal(Overloaded("x", limit="max_inflight_per_channel")), ["max_inflight_per_channel = 7", "raise it"]),
        (refusal(Overloaded("x", limit="draining")), ["shutting down"]),
        (refusal(Overloaded("x", limit="unheard_of")), ["unheard of"]),
        (refusal(TimedOut("s3cret")), ["did not answer in time"]),
    ],
)
def test_a_sentence_names_what_would_change_it(decision: Decision, words: list[str]) -> None:
    for word in words:
        assert word in told(decision, LIMITS)


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (Origin("reset", "2b26b1df3ede", (Difference("revision"),)), "another handshake: the protocol revision"),
        (Origin("idle", "2b26b1df3ede"), "idle_timeout"),
        (Origin(""), "too long ago"),
    ],
)
def test_why_it_began_anew(origin: Origin, words: str) -> None:
    assert words in origin_told(origin)


def test_an_end_without_words_is_told_by_its_own() -> None:
    assert end_told("deleted") == ENDS["deleted"]
    assert end_told("something_new") == "something new"
