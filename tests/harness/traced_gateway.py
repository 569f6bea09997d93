"""The gateway's program in a process that traces: as an operator sets the OpenTelemetry SDK up around it.

Run: `python -m harness.traced_gateway serve …`. Ended spans are written to the file that `SPANS` names, as JSON, one a
line.
"""

import os

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from trunkline.gateway.cli import main


def trace_to(path: str) -> None:
    """Let this process trace to a file."""
    file = open(path, "a", buffering=1)  # noqa: SIM115 - open as long as the process is
    exporter = ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + "\n")
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


if __name__ == "__main__":
    trace_to(os.environ["SPANS"])
    main()
