{{/* What both containers of a cleanup share: it removes the rules of every kind, whichever the daemon kept. */}}
{{- define "rolecall.cleanupContainer" -}}
image: {{ include "rolecall.image" (list . "rolecall-daemon") }}
{{- with .Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
resources:
  requests:
    cpu: 10m
    memory: 16Mi
  limits:
    memory: 128Mi
securityContext:
  runAsUser: 0
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    add: [NET_ADMIN, NET_RAW]
volumeMounts:
- name: handover
  mountPath: /run/rolecall-handover
- name: xtables-lock
  mountPath: /run/xtables.lock
{{- end }}
