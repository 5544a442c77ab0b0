"""Checks the Helm chart: what it renders, what it refuses, and its dashboard. Run it through ./run."""

import json
import re
import sys
import tomllib
import traceback

import helm_python
import yaml

import metric_names
from rendering import CHART, SIMULATED, of_kind, pod_templates, refusal, render, validate

DEFAULT_KINDS = ["ConfigMap", "ConfigMap", "Service", "ServiceAccount", "StatefulSet"]
UNIT = SIMULATED["agent"]["units"][0]


def with_unit(**changes):
    return {"agent": {"units": [{**UNIT, **changes}]}}


def the_linter_has_no_warning():
    for values in [None, SIMULATED]:
        report = helm_python.lint(CHART, values, strict=True)
        assert not report["errors"], report["errors"]
        loud = [m for m in report["messages"] if m["severity"] >= 2]
        assert not loud, loud


def defaults_render_to_valid_manifests():
    manifests, _ = render()
    assert sorted(m["kind"] for m in manifests) == DEFAULT_KINDS
    for manifest in manifests:
        validate(manifest)


def simulated_units_render_to_valid_manifests():
    manifests, _ = render(SIMULATED)
    kinds = DEFAULT_KINDS + ["ConfigMap", "ConfigMap", "DaemonSet", "DaemonSet", "PodMonitor", "ServiceMonitor"]
    assert sorted(m["kind"] for m in manifests) == sorted(kinds)
    for manifest in manifests:
        validate(manifest)


def a_manifest_with_an_unknown_field_is_found():
    service = of_kind(render()[0], "Service")[0]
    service["spec"]["portz"] = []
    try:
        validate(service)
    except Exception as error:  # the validator's own class is not part of its interface
        assert "portz" in str(error), error
    else:
        raise AssertionError("the strict validation accepted an unknown field")


def the_balancer_file_is_toml_with_its_types():
    file = of_kind(render(SIMULATED)[0], "ConfigMap")
    text = next(m["data"]["balancer.toml"] for m in file if "balancer.toml" in m["data"])
    assert tomllib.loads(text) == {
        "cluster": "demo",
        "agents_listen": "0.0.0.0:7400",
        "admin_listen": "0.0.0.0:7401",
        "metrics_listen": "0.0.0.0:7402",
        "state_dir": "/var/lib/evenkeel",
        "tls": {f: f"/etc/evenkeel-tls/{n}" for f, n in [("ca", "ca.crt"), ("certificate", "tls.crt"), ("key", "tls.key")]},
        "control": {"window_steps": 400},
    }, text


def configuration_of_every_type_survives():
    config = {
        "flag": False,
        "text": 'a "quoted" \\ word',
        "list": [1, "two", 3.5],
        "table": {"ratio": 0.005, "large": 10_000_000_000, "zero": 0},
    }
    maps = of_kind(render({"balancer": {"config": config}})[0], "ConfigMap")
    text = next(m["data"]["balancer.toml"] for m in maps if "balancer.toml" in m["data"])
    parsed = tomllib.loads(text)
    assert {key: parsed[key] for key in config} == config, text
    assert isinstance(parsed["table"]["large"], int), text


def a_key_that_the_chart_sets_is_refused_in_the_configuration():
    for key, value in [("state_dir", "/tmp"), ("tls", {"ca": "/tmp/ca.crt"})]:
        words = refusal({"balancer": {"config": {key: value}}})
        assert f"balancer.config.{key} is set by the chart" in words, words


def unknown_keys_are_refused():
    for values in [
        {"clutser": "a"},
        {"balancer": {"replicas": 3}},
        {"service": {"ports": {"admn": 7401}}},
        {"monitor": {"enable": True}},
        {"tls": {"secretName": "a"}},
        {"tls": {"balancer": {"secret": "a"}}},
        with_unit(slots=9),
        with_unit(nodes=[{"name": "a", "ranks": "0-7", "gpu": 1}]),
    ]:
        assert "additional" in refusal(values).lower(), (values, refusal(values))


def wrong_types_and_ranges_are_refused():
    for values, place in [
        ({"cluster": 7}, "cluster"),
        ({"cluster": "Upper"}, "cluster"),
        ({"service": {"ports": {"admin": "7401"}}}, "admin"),
        ({"service": {"ports": {"metrics": 80}}}, "metrics"),
        ({"agent": {"backend": "cuda"}}, "backend"),
        ({"tls": {"enabled": "yes"}}, "enabled"),
        ({"tls": {"agent": {"secretName": "Upper"}}}, "secretName"),
        ({"tls": {"agent": {"volume": {"csi": {}, "secret": {}}}}}, "volume"),
        (with_unit(role="both"), "role"),
        (with_unit(layers=0), "layers"),
        (with_unit(nodes=[]), "nodes"),
        (with_unit(nodes=[{"name": "a", "ranks": "0..7"}]), "ranks"),
        ({"agent": {"units": [{"name": "a"}]}}, "units"),
    ]:
        assert place in refusal(values), (values, refusal(values))


def the_schema_leaves_no_object_open():
    open_on_purpose = {"global", "affinity", "valueFrom", "stateVolume", "requests", "limits", "tolerations"}

    def walk(schema, name):
        if schema.get("type") == "object" and name not in open_on_purpose:
            assert "additionalProperties" in schema, f"{name} takes any key"
        for key, inner in {**schema.get("properties", {}), **schema.get("$defs", {})}.items():
            walk(inner, key)
        if isinstance(schema.get("items"), dict):
            walk(schema["items"], name)

    walk(json.loads((CHART / "values.schema.json").read_text()), "values")


def every_key_of_the_schema_has_a_default():
    def walk(schema, values, path):
        for key, inner in schema.get("properties", {}).items():
            if (path, key) == ("", "global"):
                continue
            assert key in values, f"{path}{key} has no default in values.yaml"
            if isinstance(values[key], dict):
                walk(inner, values[key], f"{path}{key}.")

    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for resources in [values["balancer"], values["agent"]]:
        assert resources.pop("resources")
    for part in [schema["properties"]["balancer"], schema["properties"]["agent"]]:
        part["properties"].pop("resources")
    walk(schema, values, "")


def pods_meet_the_restricted_security_standard():
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret", "downwardAPI", "csi", "ephemeral"}
    for name, template in pod_templates(render(SIMULATED)[0]):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), name
        for volume in pod["volumes"]:
            assert volume.keys() - {"name"} <= allowed, (name, volume)
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert not any("hostPort" in port for port in container["ports"]), name


def what_is_named_exists():
    """Selectors, ports, volumes, ConfigMaps, the account: each reference has its object."""
    manifests, _ = render(SIMULATED)
    names = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    pods = [template["metadata"]["labels"] for _, template in pod_templates(manifests)]
    ports = {port["name"] for _, t in pod_templates(manifests) for c in t["spec"]["containers"] for port in c["ports"]}
    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] in {"StatefulSet", "DaemonSet"}:
            labels = spec["template"]["metadata"]["labels"]
            assert spec["selector"]["matchLabels"].items() <= labels.items(), manifest["metadata"]["name"]
        if manifest["kind"] == "StatefulSet":
            assert ("Service", spec["serviceName"]) in names
        if manifest["kind"] == "Service":
            assert [pod for pod in pods if spec["selector"].items() <= pod.items()] == pods[-1:], "one workload"
            assert {port["targetPort"] for port in spec["ports"]} <= ports
        if manifest["kind"] == "ServiceMonitor":
            wanted = spec["selector"]["matchLabels"].items()
            assert [s for s in of_kind(manifests, "Service") if wanted <= s["metadata"]["labels"].items()]
        if manifest["kind"] == "PodMonitor":
            wanted = spec["selector"]["matchLabels"].items()
            assert sum(wanted <= pod.items() for pod in pods) == len(SIMULATED["agent"]["units"])
    for name, template in pod_templates(manifests):
        pod = template["spec"]
        assert ("ServiceAccount", pod["serviceAccountName"]) in names, name
        claims = {"state"} if name.endswith("-balancer") else set()
        volumes = {volume["name"] for volume in pod["volumes"]} | claims
        for volume in pod["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names, name
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes, name
            own = {port["name"] for port in container["ports"]}
            for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
                if probe in container:
                    assert container[probe]["httpGet"]["port"] in own, (name, probe)


def every_node_of_a_unit_has_its_ranks_and_is_chosen():
    manifests, _ = render(SIMULATED)
    for unit in SIMULATED["agent"]["units"]:
        name = f"demo-evenkeel-agent-{unit['name']}"
        config = next(m for m in of_kind(manifests, "ConfigMap") if m["metadata"]["name"] == name)
        ranks = {file: tomllib.loads(text) for file, text in config["data"].items()}
        names = [node["name"].replace(".", "-") for node in unit["nodes"]]
        files = [{"tls_ca": "ca.crt", "tls_cert": f"{name}.crt", "tls_key": f"{name}.key"} for name in names]
        files = [{key: f"/etc/evenkeel-tls/{file}" for key, file in some.items()} for some in files]
        wanted = [{"node": n, "ranks": node["ranks"], **f} for n, f, node in zip(names, files, unit["nodes"])]
        assert ranks == dict(zip([f"{node['name']}.toml" for node in unit["nodes"]], wanted)), ranks
        pod = next(m for m in of_kind(manifests, "DaemonSet") if m["metadata"]["name"] == name)["spec"]["template"]["spec"]
        rule = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        chosen = [term["matchFields"][0]["values"] for term in rule["nodeSelectorTerms"]]
        assert chosen == [[node["name"]] for node in unit["nodes"]]


def agents_reach_the_balancer_by_its_service():
    manifests, _ = render(SIMULATED, namespace="serving")
    service = of_kind(manifests, "Service")[0]
    port = next(p["port"] for p in service["spec"]["ports"] if p["name"] == "agents")
    for daemon in of_kind(manifests, "DaemonSet"):
        args = daemon["spec"]["template"]["spec"]["containers"][0]["args"]
        assert f"--balancer={service['metadata']['name']}.serving.svc:{port}" in args, args
        assert "--cluster=demo" in args


def secrets_of(manifests):
    """The Secret that each workload mounts for TLS."""
    volumes = {name: t["spec"]["volumes"] for name, t in pod_templates(manifests)}
    return {name: v["secret"]["secretName"] for name, all in volumes.items() for v in all if v["name"] == "tls"}


def tls_is_on_unless_it_is_turned_off():
    manifests, notes = render(SIMULATED)
    balancer, agents = "demo-evenkeel-balancer-tls", "demo-evenkeel-agent-tls"
    assert secrets_of(manifests) == {
        "demo-evenkeel-balancer": balancer,
        "demo-evenkeel-agent-prefill": agents,
        "demo-evenkeel-agent-decode": agents,
    }
    assert all(secret in notes for secret in [balancer, agents, "demo-evenkeel-monitor-tls"]), notes
    for _, template in pod_templates(manifests):
        for container in template["spec"]["containers"]:
            probes = [value for key, value in container.items() if key.endswith("Probe")]
            assert {probe["httpGet"]["scheme"] for probe in probes} == {"HTTPS"}
    named = {"tls": {"balancer": {"secretName": "mine"}, "agent": {"secretName": "theirs"}}}
    assert set(secrets_of(render({**SIMULATED, **named})[0]).values()) == {"mine", "theirs"}


def plaintext_is_asked_for_in_so_many_words():
    manifests, notes = render({**SIMULATED, "tls": {"enabled": False}})
    for manifest in manifests:
        validate(manifest)
    assert "PLAINTEXT" in notes and not secrets_of(manifests)
    config = next(m["data"]["balancer.toml"] for m in of_kind(manifests, "ConfigMap") if "balancer.toml" in m["data"])
    assert tomllib.loads(config)["insecure_plaintext"] is True and "tls" not in tomllib.loads(config)
    for daemon in of_kind(manifests, "DaemonSet"):
        assert "--insecure-plaintext" in daemon["spec"]["template"]["spec"]["containers"][0]["args"]
    for kind, endpoints in [("ServiceMonitor", "endpoints"), ("PodMonitor", "podMetricsEndpoints")]:
        assert "scheme" not in of_kind(manifests, kind)[0]["spec"][endpoints][0]


def a_volume_can_stand_in_for_the_agents_secret():
    volume = {"csi": {"driver": "csi.cert-manager.io", "readOnly": True}}
    manifests, _ = render({**SIMULATED, "tls": {"agent": {"volume": volume}}})
    for daemon in of_kind(manifests, "DaemonSet"):
        validate(daemon)
        pod = daemon["spec"]["template"]["spec"]
        assert {"name": "tls", **volume} in pod["volumes"]
        assert "--tls-cert=/etc/evenkeel-tls/tls.crt" in pod["containers"][0]["args"]
    for config in of_kind(manifests, "ConfigMap"):
        assert not any("tls_cert" in text for text in config["data"].values())


def scrapers_show_a_certificate_and_verify_what_they_can():
    def endpoint(values, kind, key):
        return of_kind(render({**SIMULATED, **values})[0], kind)[0]["spec"][key][0]

    balancer = endpoint({}, "ServiceMonitor", "endpoints")
    assert (balancer["scheme"], balancer["tlsConfig"]["serverName"]) == ("https", "balancer.demo.evenkeel")
    assert balancer["tlsConfig"]["keySecret"] == {"name": "demo-evenkeel-monitor-tls", "key": "tls.key"}
    agents = endpoint({}, "PodMonitor", "podMetricsEndpoints")["tlsConfig"]
    assert agents["insecureSkipVerify"] is True and "serverName" not in agents
    named = {"tls": {"monitor": {"agentServerName": "agents.demo"}}}
    agents = endpoint(named, "PodMonitor", "podMetricsEndpoints")["tlsConfig"]
    assert agents["serverName"] == "agents.demo" and "insecureSkipVerify" not in agents


def another_port_reaches_all_places():
    manifests, notes = render({"service": {"ports": {"metrics": 9402}}})
    assert "9402" in notes
    config = next(m["data"]["balancer.toml"] for m in of_kind(manifests, "ConfigMap") if "balancer.toml" in m["data"])
    assert tomllib.loads(config)["metrics_listen"] == "0.0.0.0:9402"
    container = of_kind(manifests, "StatefulSet")[0]["spec"]["template"]["spec"]["containers"][0]
    assert 9402 in [port["containerPort"] for port in container["ports"]]


def there_is_one_balancer_and_its_store_is_kept():
    balancer = of_kind(render()[0], "StatefulSet")[0]["spec"]
    assert balancer["replicas"] == 1
    assert balancer["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] == "1Gi"
    without = {"balancer": {"persistence": {"enabled": False}}}
    balancer = of_kind(render(without)[0], "StatefulSet")[0]
    validate(balancer)
    assert "volumeClaimTemplates" not in balancer["spec"]
    assert {"name": "state", "emptyDir": {}} in balancer["spec"]["template"]["spec"]["volumes"]


def a_changed_configuration_replaces_the_balancer():
    def checksum(values):
        return of_kind(render(values)[0], "StatefulSet")[0]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    assert checksum({}) == checksum({})
    assert checksum({}) != checksum({"balancer": {"config": {"control": {"window_steps": 1}}}})


def names_fit_whatever_the_release_is_called():
    for name in ["e", "a" * 53, "evenkeel"]:
        for manifest in render({**SIMULATED, **with_unit(name="u" * 16)}, name=name)[0]:
            assert len(manifest["metadata"]["name"]) <= 63, manifest["metadata"]["name"]
            validate(manifest)


def the_notes_say_what_is_next_and_what_is_simulated():
    for values in [{}, SIMULATED]:
        notes = render(values)[1]
        commands = [line.split()[0] for line in notes.splitlines() if line.startswith("  ") and line.split()[0] in ("kubectl", "curl")]
        assert commands == ["kubectl", "kubectl", "curl"], commands
        assert "SIMULATED" in notes
    assert "No agent runs yet" in render()[1]


def the_dashboard_arrives_in_a_labelled_config_map():
    manifests, _ = render()
    maps = [m for m in of_kind(manifests, "ConfigMap") if m["metadata"]["labels"].get("grafana_dashboard") == "1"]
    assert [list(m["data"]) for m in maps] == [["evenkeel.json"]]
    assert json.loads(maps[0]["data"]["evenkeel.json"]) == json.loads(metric_names.DASHBOARD.read_text())
    off = render({"dashboards": {"enabled": False}})[0]
    assert not [m for m in off if "grafana_dashboard" in m["metadata"]["labels"]]


def the_dashboard_is_laid_out_and_explained():
    dashboard = json.loads(metric_names.DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    assert [v["name"] for v in dashboard["templating"]["list"]] == ["datasource", "cluster", "unit"]
    taken = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, f"{panel['title']} overlaps"
        taken |= cells
        assert panel["type"] == "row" or panel["description"].endswith("."), f"{panel['title']} is not explained"
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"


def every_query_parses_and_keeps_to_the_cluster():
    dashboard = json.loads(metric_names.DASHBOARD.read_text())
    for place, expression in metric_names.expressions(dashboard):
        found = list(metric_names.selectors(expression))
        assert len(found) == expression.count("evenkeel_"), f"{place}: a series without labels in {expression}"
        for name, labels in found:
            assert "cluster" in labels, f"{place}: {name} is not held to $cluster"


def source_names():
    """All names that the source exports, and those of them that are histograms."""
    names, histograms = set(), set()
    for path in metric_names.SOURCES:
        found = metric_names.exported(path)
        assert len(found) > 5, f"{len(found)} names in {path}: has their form in the source changed?"
        names |= found
        histograms |= metric_names.histograms(path)
    return names, histograms


def every_metric_of_the_dashboard_exists():
    names, _ = source_names()
    unknown = metric_names.charted(json.loads(metric_names.DASHBOARD.read_text())) - names
    assert not unknown, f"on the dashboard, not in the source: {sorted(unknown)}"


def every_metric_of_the_source_is_charted_or_excused():
    names, _ = source_names()
    charted = metric_names.charted(json.loads(metric_names.DASHBOARD.read_text()))
    forgotten = names - charted - metric_names.NOT_CHARTED.keys()
    assert not forgotten, f"in the source, neither on the dashboard nor in NOT_CHARTED: {sorted(forgotten)}"
    stale = metric_names.NOT_CHARTED.keys() & charted | metric_names.NOT_CHARTED.keys() - names
    assert not stale, f"in NOT_CHARTED, but charted or gone: {sorted(stale)}"


def quantiles_are_asked_of_histograms_only():
    _, histograms = source_names()
    asked = set()
    for _, expression in metric_names.expressions(json.loads(metric_names.DASHBOARD.read_text())):
        asked |= {n.removesuffix("_bucket") for n, _ in metric_names.selectors(expression) if n.endswith("_bucket")}
    assert asked <= histograms, f"not histograms in the source: {sorted(asked - histograms)}"


def the_binaries_know_every_flag_and_key():
    """The chart's flags are the agent's options, its configuration keys the balancer's fields."""
    source = (metric_names.ROOT / "agent/src/config.rs").read_text()
    options = {name.lower().replace("_", "-") for name in re.findall(r'"EVENKEEL_AGENT_([A-Z_]+)"', source)}
    manifests, _ = render(SIMULATED)
    for daemon in of_kind(manifests, "DaemonSet"):
        flags = {arg.split("=")[0].removeprefix("--") for arg in daemon["spec"]["template"]["spec"]["containers"][0]["args"]}
        assert flags <= options, f"not options of the agent: {sorted(flags - options)}"
    for config in of_kind(manifests, "ConfigMap"):
        for file, text in config["data"].items():
            if file.endswith(".toml") and file != "balancer.toml":
                keys = {key.replace("_", "-") for key in tomllib.loads(text)}
                assert keys <= options, f"not options of the agent: {sorted(keys - options)}"
    source = (metric_names.ROOT / "balancer/src/config.rs").read_text()
    fields = set(re.findall(r"^    pub (\w+):", source, re.MULTILINE))
    config = next(m["data"]["balancer.toml"] for m in of_kind(manifests, "ConfigMap") if "balancer.toml" in m["data"])
    for key, value in tomllib.loads(config).items():
        keys = {key} | (value.keys() if isinstance(value, dict) else set())
        assert keys <= fields, f"not keys of the balancer: {sorted(keys - fields)}"


CHECKS = [
    the_linter_has_no_warning,
    defaults_render_to_valid_manifests,
    simulated_units_render_to_valid_manifests,
    a_manifest_with_an_unknown_field_is_found,
    the_balancer_file_is_toml_with_its_types,
    configuration_of_every_type_survives,
    a_key_that_the_chart_sets_is_refused_in_the_configuration,
    unknown_keys_are_refused,
    wrong_types_and_ranges_are_refused,
    the_schema_leaves_no_object_open,
    every_key_of_the_schema_has_a_default,
    pods_meet_the_restricted_security_standard,
    what_is_named_exists,
    every_node_of_a_unit_has_its_ranks_and_is_chosen,
    agents_reach_the_balancer_by_its_service,
    tls_is_on_unless_it_is_turned_off,
    plaintext_is_asked_for_in_so_many_words,
    a_volume_can_stand_in_for_the_agents_secret,
    scrapers_show_a_certificate_and_verify_what_they_can,
    another_port_reaches_all_places,
    there_is_one_balancer_and_its_store_is_kept,
    a_changed_configuration_replaces_the_balancer,
    names_fit_whatever_the_release_is_called,
    the_notes_say_what_is_next_and_what_is_simulated,
    the_dashboard_arrives_in_a_labelled_config_map,
    the_dashboard_is_laid_out_and_explained,
    every_query_parses_and_keeps_to_the_cluster,
    every_metric_of_the_dashboard_exists,
    every_metric_of_the_source_is_charted_or_excused,
    quantiles_are_asked_of_histograms_only,
    the_binaries_know_every_flag_and_key,
]


def main():
    failed = 0
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            check()
            print(f"ok    {name}")
        except Exception:
            failed += 1
            print(f"FAIL  {name}\n{traceback.format_exc()}")
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
