"""What a scrape of ContextForge's end point shows of the sessions that are kept."""

from prometheus_client import CollectorRegistry, generate_latest
from trunkline.compat.contextforge.metrics import expose
from trunkline.compat.contextforge.reuse import Reuse
from trunkline.compat.contextforge.settings import ContextForgeSettings


def scraped(reuse: Reuse) -> str:
    registry = CollectorRegistry()
    expose(reuse, registry)
    return generate_latest(registry).decode()


def test_hits_misses_and_ends_are_there_by_server() -> None:
    reuse = Reuse(ContextForgeSettings(), lambda _: None, verifies_tls=True)
    reuse.statistics.count("pool_requests", "up", "hit", by=3)
    reuse.statistics.count("pool_requests", "up", "miss")
    reuse.statistics.count("channels_closed", "up", "idle")
    reuse.statistics.count("something_else", "up")
    text = scraped(reuse)
    assert 'trunkline_pool_requests_total{result="hit",server="up"} 3.0' in text
    assert 'trunkline_pool_requests_total{result="miss",server="up"} 1.0' in text
    assert 'trunkline_channels_closed_total{reason="idle",server="up"} 1.0' in text
    assert "something_else" not in text


def test_families_are_there_before_anything_has_happened() -> None:
    text = scraped(Reuse(ContextForgeSettings(), lambda _: None, verifies_tls=True))
    for name in ("pool_requests_total", "channels_closed_total", "channels"):
        assert f"# TYPE trunkline_{name.removesuffix('_total')}" in text
