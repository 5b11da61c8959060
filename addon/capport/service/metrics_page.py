"""Shows the portal's counts and its health to Prometheus, by HTTP on loopback."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from capport.core.place import Place
from capport.core.session import open_ones
from capport.gate import Gate
from capport.metrics import Timing

type Health = Callable[[], dict[str, bool]]
"""Each part of the portal that may fail, and whether it works now."""


@contextmanager
def metrics_page(
    place: Place, gate: Gate, health: Health, unknown: Callable[[], int]
) -> Iterator[None]:
    """Answers Prometheus at `place`, on a thread of its own. Raises OSError if it cannot listen."""
    registry = CollectorRegistry()
    registry.register(PortalMetrics(gate, health, unknown))
    server, thread = start_http_server(place.port, str(place.host), registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class PortalMetrics(Collector):
    """The portal's metrics, as they are when Prometheus asks."""

    def __init__(self, gate: Gate, health: Health, unknown: Callable[[], int]) -> None:
        self._gate = gate
        self._health = health
        self._unknown = unknown

    def collect(self) -> Iterator[Metric]:
        """Each metric."""
        gate, metrics = self._gate, self._gate.metrics
        known = len(open_ones(gate.store.sessions(), gate.now()))
        about = "Open sessions (known), and unknown clients connected to the proxy (unknown)."
        clients = GaugeMetricFamily("capport_clients", about, labels=["standing"])
        yield _filled(clients, {"known": known, "unknown": self._unknown()})
        about = "Verdicts on requests and handshakes."
        verdicts = CounterMetricFamily("capport_verdicts", about, labels=["verdict"])
        yield _filled(verdicts, metrics.verdicts)
        about = "What was denied because the portal could not decide, by the place that denied it."
        denied = CounterMetricFamily("capport_denied", about, labels=["where"])
        yield _filled(denied, metrics.denied)
        yield _timing("capport_decision_seconds", "A verdict on a request.", metrics.decisions)
        yield _timing("capport_grant_seconds", "A grant, until it is in force.", metrics.grants)
        about = "A revocation, until it is in force."
        yield _timing("capport_revocation_seconds", about, metrics.revocations)
        about = "Events that could not be written to the file."
        yield CounterMetricFamily("capport_events_lost", about, value=gate.events.lost_in_all)
        up = GaugeMetricFamily("capport_up", "Whether a part works now.", labels=["part"])
        yield _filled(up, self._health())


def _filled(family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[str, float]) -> Metric:
    """Adds each value, under its label."""
    for label, value in sorted(dict(values).items()):
        family.add_metric([label], value)
    return family


def _timing(name: str, about: str, timing: Timing) -> Metric:
    counts, total, buckets = list(timing.counts), 0, []
    for bound, count in zip([*map(str, timing.bounds), "+Inf"], counts, strict=True):
        total += count
        buckets.append((bound, total))
    return HistogramMetricFamily(name, about, buckets, timing.seconds)
