"""OpenTelemetry spans of each request, its look-up in the store and its question to the other party.

A span has a name from :data:`SPANS`, a time, and at most the attribute ``fedlearn.status``: never an identifier, a
consent, a feature, a score, or the text of an error. Spans are exported by a thread of the SDK's own; when the
collector is away they are dropped, and no request waits. Needs the extra ``fedlearn[otel]``, and only where a party
file asks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from fedlearn import __version__
from fedlearn.contract import Traces
from fedlearn.errors import BadConfig
from fedlearn.service.common import Refusal
from fedlearn.service.store import Features, Row

#: Every span there is: a request to this service, a look-up of an applicant's features, a question to the other party.
SPANS = ("request", "store", "peer")
#: W3C Trace Context: version, trace, span and flags; of no other form is it taken from a caller or the other party.
HEADER = "traceparent"
_LONGEST = 55


class Tracer:
    """Spans, or nothing at all where no traces are asked for."""

    def __init__(self, traces: Traces | None, party: str, exporter: Any = None) -> None:
        """``exporter``: instead of the collector's, for tests. Raises BadConfig without the extra's packages."""
        self.to_peer = traces is not None and traces.to_peer
        self._tracer: Any = None
        self._provider: Any = None
        if traces is None:
            return
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise BadConfig("[service.traces] needs OpenTelemetry: install fedlearn[otel]") from None
        logging.getLogger("opentelemetry").addHandler(logging.NullHandler())  # not between our lines of JSON
        resource = Resource({"service.name": f"fedlearn-{party}", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(traces.share)))
        far = BatchSpanProcessor(OTLPSpanExporter(traces.url, timeout=5)) if exporter is None else None
        self._provider.add_span_processor(far or SimpleSpanProcessor(exporter))
        self._tracer, self._api = self._provider.get_tracer("fedlearn"), trace
        self._form = TraceContextTextMapPropagator()

    def span(self, name: str, parent: str = "") -> AbstractContextManager[None]:
        """A span of :data:`SPANS`; a refusal inside is its status. ``parent``: the caller's trace context, if any."""
        return _NOTHING if self._tracer is None else self._span(name, parent)

    @contextmanager
    def _span(self, name: str, parent: str) -> Iterator[None]:
        context = self._form.extract({HEADER: parent}) if 0 < len(parent) <= _LONGEST else None
        with self._tracer.start_as_current_span(
            name, context, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except Refusal as refusal:
                span.set_attribute("fedlearn.status", refusal.status)
                span.set_status(self._api.StatusCode.ERROR)
                raise
            except Exception:
                span.set_status(self._api.StatusCode.ERROR)
                raise

    def traceparent(self) -> str:
        """What the other party is told of the present span: nothing unless the party file says so."""
        if self._tracer is None or not self.to_peer:
            return ""
        carrier: dict[str, str] = {}
        self._form.inject(carrier)
        return carrier.get(HEADER, "")

    def close(self) -> None:
        """Export what is left."""
        if self._provider is not None:
            self._provider.shutdown()


_NOTHING = nullcontext()
OFF = Tracer(None, "")


class TracedStore:
    """A store whose look-ups are spans."""

    def __init__(self, store: Features, tracer: Tracer) -> None:
        self._store, self._tracer = store, tracer

    def get(self, applicant: str) -> Row | None:
        """See :class:`fedlearn.service.store.Features`."""
        with self._tracer.span("store"):
            return self._store.get(applicant)

    def close(self) -> None:
        """Close the store."""
        self._store.close()
