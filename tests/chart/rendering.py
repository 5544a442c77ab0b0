"""The chart as Helm's own engine renders it, and the Kubernetes schemas that its manifests must satisfy."""

from pathlib import Path

import helm_python
import jsonschema
import kubernetes_validate
import yaml

CHART = Path(__file__).resolve().parents[2] / "charts" / "evenkeel"
SIMULATED = yaml.safe_load((CHART / "ci" / "simulated-values.yaml").read_text())
# The oldest minor version that Chart.yaml admits, and the newest whose schemas are at hand.
KUBERNETES = ["1.27.0", "1.37.0"]


def render(values=None, name="demo", namespace="serving"):
    """All manifests as dictionaries, and the notes."""
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(values or {})
        files = chart.render(values or {}, name=name, namespace=namespace)
    notes = next(text for path, text in files.items() if path.endswith("NOTES.txt"))
    texts = [text for path, text in sorted(files.items()) if path.endswith(".yaml")]
    manifests = [m for text in texts for m in yaml.safe_load_all(text) if m]
    return manifests, notes


def refusal(values):
    """Why these values are refused; empty when they are accepted."""
    try:
        render(values)
    except helm_python.HelmError as error:
        return str(error)
    return ""


def of_kind(manifests, kind):
    return [m for m in manifests if m["kind"] == kind]


def pod_templates(manifests):
    """Pairs of a workload's name and its pod template."""
    return [(m["metadata"]["name"], m["spec"]["template"]) for m in manifests if "template" in m.get("spec", {})]


# The operator's CRDs are not among Kubernetes' schemas; this is the part of them that the chart uses.
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}


_KEY = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "key"],
    "properties": {"name": {"type": "string", "minLength": 1}, "key": {"type": "string"}},
}
_FILE = {"type": "object", "additionalProperties": False, "required": ["secret"], "properties": {"secret": _KEY}}
_TLS = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "ca": _FILE,
        "cert": _FILE,
        "keySecret": _KEY,
        "serverName": {"type": "string", "minLength": 1},
        "insecureSkipVerify": {"const": True},
    },
}


def _monitor(endpoints):
    relabeling = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "targetLabel": {"type": "string"},
            "replacement": {"type": "string"},
            "sourceLabels": {"type": "array", "items": {"type": "string", "pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}},
        },
    }
    endpoint = {
        "type": "object",
        "additionalProperties": False,
        "required": ["port"],
        "properties": {
            "port": {"type": "string"},
            "path": {"type": "string"},
            "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
            "scheme": {"enum": ["http", "https"]},
            "tlsConfig": _TLS,
            "honorLabels": {"type": "boolean"},
            "relabelings": {"type": "array", "items": relabeling},
        },
    }
    selector = {"type": "object", "additionalProperties": False, "properties": {"matchLabels": _STRINGS}}
    spec = {
        "type": "object",
        "additionalProperties": False,
        "required": ["selector", endpoints],
        "properties": {"selector": selector, endpoints: {"type": "array", "items": endpoint}},
    }
    return {"type": "object", "required": ["metadata", "spec"], "properties": {"spec": spec}}


_MONITORS = {"ServiceMonitor": _monitor("endpoints"), "PodMonitor": _monitor("podMetricsEndpoints")}


def validate(manifest):
    """Raises when the manifest breaks its schema or has a field that the schema does not know."""
    if manifest["kind"] in _MONITORS:
        jsonschema.validate(manifest, _MONITORS[manifest["kind"]])
        return
    for version in KUBERNETES:
        kubernetes_validate.validate(manifest, version, strict=True)
