"""Counters in Prometheus' text format (version 0.0.4)."""

import threading

import obelisk
from obelisk.rag.service import Rag


class Metrics:
    """What happened since the start. Labels come from routes, never from what clients wrote."""

    def __init__(self, rag: Rag) -> None:
        self._rag = rag
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, str, int], tuple[int, float]] = {}

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request."""
        method = method if method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS") else "other"
        with self._lock:
            count, total = self._requests.get((method, route, status), (0, 0.0))
            self._requests[method, route, status] = (count + 1, total + seconds)

    def text(self) -> str:
        """All of it."""
        counters = self._rag.counters
        lines: list[str] = []

        def family(name: str, kind: str, doc: str, samples: list[tuple[str, float]]) -> None:
            lines.append(f"# HELP {name} {doc}")
            lines.append(f"# TYPE {name} {kind}")
            lines.extend(f"{name}{labels} {value:g}" for labels, value in samples)

        family("obelisk_info", "gauge", "Version.", [(f'{{version="{obelisk.__version__}"}}', 1)])
        family("obelisk_rag_chunks", "gauge", "Chunks in the store.", [("", self._rag.chunks)])
        skipped = len(self._rag.skipped())
        family("obelisk_rag_skipped_pages", "gauge", "Pages that could not be indexed.", [("", skipped)])
        family("obelisk_rag_indexed", "gauge", "Whether the vault was indexed.", [("", int(self._rag.indexed))])
        family("obelisk_rag_embedded_total", "counter", "Chunks embedded.", [("", counters.embedded)])
        family("obelisk_rag_removed_total", "counter", "Chunks removed.", [("", counters.removed)])
        family("obelisk_rag_questions_total", "counter", "Questions answered.", [("", counters.questions)])
        failures = [(f'{{part="{part}"}}', count) for part, count in sorted(counters.failures.items())]
        family("obelisk_rag_failures_total", "counter", "Failures by part.", failures)
        with self._lock:
            requests = sorted(self._requests.items())
        labelled = [
            (f'{{method="{method}",route="{route}",status="{status}"}}', count, seconds)
            for (method, route, status), (count, seconds) in requests
        ]
        family(
            "obelisk_http_requests_total",
            "counter",
            "Requests answered.",
            [(labels, count) for labels, count, _ in labelled],
        )
        family(
            "obelisk_http_request_seconds_total",
            "counter",
            "Seconds spent on them.",
            [(labels, seconds) for labels, _, seconds in labelled],
        )
        return "\n".join(lines) + "\n"
