"""The names under which Prometheus stores a metric."""

from segserve.runtime.metrics import Kind, Metric


def sample_names(metric: Metric) -> tuple[str, ...]:
    if metric.kind is Kind.HISTOGRAM:
        return tuple(f"{metric.name}_{part}" for part in ("bucket", "sum", "count"))
    return (metric.name,)
