{{- /* Of pods and selectors. The name is KubeRay's on its pods. */ -}}
{{- define "nowcast.labels" -}}
app.kubernetes.io/part-of: nowcast
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "nowcast.metadata" -}}
name: {{ .root.Release.Name }}-{{ .name | default .component }}
labels:
  {{- include "nowcast.labels" . | nindent 2 }}
  app.kubernetes.io/name: nowcast
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "nowcast.image" -}}
image: {{ ternary .images.gpu .images.cpu (gt (int .gpus) 0) }}
imagePullPolicy: {{ .root.Values.images.pullPolicy }}
{{- end }}

{{- /* A budget is kept to within 20%: the pod's limit leaves that much. */ -}}
{{- define "nowcast.limitGiB" -}}
{{ add (ceil (mulf 1.2 (addf .historiesGiB .forecastsGiB))) .overheadGiB }}
{{- end }}

{{- define "nowcast.resources" -}}
resources:
  requests: { cpu: {{ .cpus | quote }}, memory: {{ .memoryGiB }}Gi{{ if .gpus }}, nvidia.com/gpu: {{ .gpus | quote }}{{ end }} }
  limits: { memory: {{ .memoryGiB }}Gi{{ if .gpus }}, nvidia.com/gpu: {{ .gpus | quote }}{{ end }} }
{{- end }}

{{- define "nowcast.podSecurity" -}}
enableServiceLinks: false # variables such as NOWCAST_PORT, of Services called nowcast
{{- with .Values.images.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  fsGroup: 10001
  seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "nowcast.containerSecurity" -}}
securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: [ALL] } }
{{- end }}

{{- define "nowcast.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- if or .tolerations .gpus }}
tolerations:
  {{- with .tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if .gpus }}
  - { key: nvidia.com/gpu, operator: Exists, effect: NoSchedule }
  {{- end }}
{{- end }}
{{- end }}

{{- define "nowcast.url" -}}
{{- if .Values.train.server }}{{ .Values.train.server }}
{{- else if .Values.serve.enabled }}http://{{ .Release.Name }}-serve-svc:8440
{{- else if .Values.server.enabled }}{{ ternary "https" "http" (ne .Values.server.tls.secret "") }}://{{ .Release.Name }}-server:8440
{{- else }}{{ fail "train.server: give the URL of a server, or enable server or serve" }}
{{- end }}
{{- end }}
