{{/*
A map as TOML: scalars and lists of scalars first, then one table for each map in it. Helm's own toToml writes every
number as a float (400.0), since values pass through JSON; a configuration that asks for an integer would refuse it.
*/}}
{{- define "evenkeel.toml.value" -}}
{{- if kindIs "slice" . -}}
[{{ range $i, $item := . }}{{ if $i }}, {{ end }}{{ include "evenkeel.toml.value" $item }}{{ end }}]
{{- else if kindIs "string" . -}}
{{ . | toJson }}
{{- else if kindIs "bool" . -}}
{{ . }}
{{- else if eq (float64 .) (floor .) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end }}

{{- define "evenkeel.toml" -}}
{{- range $key, $value := . }}
{{- if not (kindIs "map" $value) }}
{{ $key }} = {{ include "evenkeel.toml.value" $value }}
{{- end }}
{{- end }}
{{- range $key, $value := . }}
{{- if kindIs "map" $value }}

[{{ $key }}]
{{- range $inner, $item := $value }}
{{ $inner }} = {{ include "evenkeel.toml.value" $item }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
