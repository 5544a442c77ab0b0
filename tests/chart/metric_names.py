"""The names of metrics: those that the source exports, and those that a dashboard asks for."""

import re
from pathlib import Path

import promql_parser

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    ROOT / "balancer/src/metrics.rs": "evenkeel_",
    ROOT / "agent/src/metrics.rs": "evenkeel_agent_",
}
DASHBOARD = ROOT / "charts/evenkeel/dashboards/evenkeel.json"

# Exported metrics that no panel shows, each with the reason.
NOT_CHARTED = {
    "evenkeel_recorded_batches_total": "the flight recorder is off unless an operator asks for it",
}

_HISTOGRAM = re.compile(r"_(bucket|sum|count)$")


def exported(path):
    """Names in a source file: string literals that are nothing but a name."""
    return set(re.findall(rf'"({SOURCES[path]}[a-z0-9_]+)"', path.read_text()))


def histograms(path):
    """Those declared as histograms."""
    return set(re.findall(r'\bhistogram\b[^"\n]*"(evenkeel_[a-z0-9_]+)"', path.read_text()))


def expressions(dashboard):
    """Each query of the dashboard, with the place it stands in."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield f"annotation {annotation['name']}", annotation["expr"]


def parse(expression):
    """The parsed query, Grafana's interval variable filled in."""
    return promql_parser.parse(expression.replace("$__rate_interval", "5m"))


def selectors(expression):
    """Each series selector of a query: its metric's name and the labels it matches."""
    parse(expression)
    for name, labels in re.findall(r"(evenkeel_[a-z0-9_]+)\{([^}]*)\}", expression):
        yield name, re.findall(r'(\w+)=~?"', labels)


def charted(dashboard):
    """Metrics that the dashboard names, a histogram's series counted as the histogram."""
    text = [expression for _, expression in expressions(dashboard)]
    text += [variable.get("definition", "") for variable in dashboard["templating"]["list"]]
    names = set(re.findall(r"evenkeel_[a-z0-9_]+", " ".join(text)))
    return {_HISTOGRAM.sub("", name) for name in names}
