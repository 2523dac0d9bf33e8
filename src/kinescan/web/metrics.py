"""Numbers about the service, in the form that Prometheus reads."""

import threading
from collections import defaultdict

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """Counts and times, as `text` writes them (text format 0.0.4 of Prometheus); threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, str, int], int] = defaultdict(int)
        self._seconds: dict[str, list[float]] = {}
        self._counts: dict[str, float] = defaultdict(float)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request that was answered."""
        with self._lock:
            self._requests[method, route, status] += 1
            row = self._seconds.setdefault(route, [0.0] * (len(_BUCKETS) + 2))
            for index, bound in enumerate(_BUCKETS):
                row[index] += seconds <= bound
            row[-2] += 1
            row[-1] += seconds

    def add(self, name: str, amount: float = 1.0) -> None:
        """Adds to a counter."""
        with self._lock:
            self._counts[name] += amount

    def text(self, gauges: dict[str, float]) -> str:
        """All of it, with what is measured at this moment.

        Example:
            >>> metrics = Metrics()
            >>> metrics.add("stream_frames_total", 3)
            >>> print(metrics.text({"streams": 1}))
            # TYPE kinescan_stream_frames_total counter
            kinescan_stream_frames_total 3
            # TYPE kinescan_streams gauge
            kinescan_streams 1
            <BLANKLINE>
        """
        with self._lock:
            lines = []
            if self._requests:
                lines.append("# TYPE kinescan_requests_total counter")
            for (method, route, status), count in sorted(self._requests.items()):
                labels = f'method="{method}",route="{route}",status="{status}"'
                lines.append(f"kinescan_requests_total{{{labels}}} {count}")
            if self._seconds:
                lines.append("# TYPE kinescan_request_seconds histogram")
            for route, row in sorted(self._seconds.items()):
                for bound, number in zip((*map(str, _BUCKETS), "+Inf"), row, strict=False):
                    lines.append(f'kinescan_request_seconds_bucket{{route="{route}",le="{bound}"}} {number:g}')
                lines.append(f'kinescan_request_seconds_count{{route="{route}"}} {row[-2]:g}')
                lines.append(f'kinescan_request_seconds_sum{{route="{route}"}} {row[-1]:.6f}')
            for kind, values in (("counter", self._counts), ("gauge", gauges)):
                for name, value in sorted(values.items()):
                    lines += [f"# TYPE kinescan_{name} {kind}", f"kinescan_{name} {value:.12g}"]
            return "\n".join(lines) + "\n"
