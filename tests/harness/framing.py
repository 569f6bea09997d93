"""All that came, read as frames."""

from trunkline.transports.frames import Frames
from websockets.frames import Frame


def frames_of(data: bytes, frames: Frames) -> list[bytes | Frame]:
    """Portion after portion of it."""
    came: list[bytes | Frame] = []
    at = 0
    while at < len(data):
        at = frames.feed(data, at, came)
    return came
