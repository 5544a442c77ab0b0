{{- define "evenkeel.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* 40 characters leave room for "-balancer" and "-agent-" with a unit's name within 63. */}}
{{- define "evenkeel.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "evenkeel.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "evenkeel.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "evenkeel.selectorLabels" -}}
app.kubernetes.io/name: {{ include "evenkeel.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "evenkeel.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "evenkeel.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "evenkeel.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "evenkeel.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The Secrets of TLS: the balancer's, the agents', the scraper's. */}}
{{- define "evenkeel.balancerTls" -}}
{{- default (printf "%s-balancer-tls" (include "evenkeel.fullname" .)) .Values.tls.balancer.secretName }}
{{- end }}

{{- define "evenkeel.agentTls" -}}
{{- default (printf "%s-agent-tls" (include "evenkeel.fullname" .)) .Values.tls.agent.secretName }}
{{- end }}

{{- define "evenkeel.monitorTls" -}}
{{- default (printf "%s-monitor-tls" (include "evenkeel.fullname" .)) .Values.tls.monitor.secretName }}
{{- end }}

{{/* How probes reach the metrics port: without a certificate they see nothing but whether it is alive. */}}
{{- define "evenkeel.probeScheme" -}}
{{- if .Values.tls.enabled }}HTTPS{{ else }}HTTP{{ end }}
{{- end }}

{{/* What a scraper of TLS needs beside the server's name. */}}
{{- define "evenkeel.monitorTlsConfig" -}}
ca:
  secret: {name: {{ include "evenkeel.monitorTls" . }}, key: ca.crt}
cert:
  secret: {name: {{ include "evenkeel.monitorTls" . }}, key: tls.crt}
keySecret: {name: {{ include "evenkeel.monitorTls" . }}, key: tls.key}
{{- end }}

{{- define "evenkeel.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}

{{/* What the restricted pod security standard asks of a pod; 65532 is the customary id of "nonroot". */}}
{{- define "evenkeel.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* ... and of a container. */}}
{{- define "evenkeel.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
