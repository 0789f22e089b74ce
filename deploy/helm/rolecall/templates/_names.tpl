{{/* What all objects of a part are labelled with: (list . "rolecall-daemon"). */}}
{{- define "rolecall.labels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name ($root.Chart.Version | replace "+" "_") }}
{{- end }}

{{/* (list . "rolecall-daemon") */}}
{{- define "rolecall.image" -}}
{{- $root := index . 0 -}}
{{ $root.Values.image.prefix }}{{ index . 1 }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end }}

{{/* Metrics are for others than the node itself. */}}
{{- define "rolecall.metricsShown" -}}
{{- if or .Values.metrics.service .Values.metrics.podMonitor }}true{{ end }}
{{- end }}

{{/* The webhook is there: it goes first when Rolecall is uninstalled. */}}
{{- define "rolecall.shim" -}}
{{- if and .Values.shim.enabled (not .Values.cleanup) }}true{{ end }}
{{- end }}

{{- define "rolecall.certManager" -}}
{{- if eq .Values.shim.certificate "cert-manager" }}true{{ end }}
{{- end }}
