{{/* Of what belongs to one variant. How long it may be is checked: cut, two could be one. */}}
{{- define "preheat.name" -}}
{{- printf "%s-%s" .release .variant -}}
{{- end }}

{{- define "preheat.selector" -}}
app.kubernetes.io/name: preheat
app.kubernetes.io/instance: {{ .release | quote }}
preheat.dev/variant: {{ .variant | quote }}
{{- end }}

{{- define "preheat.labels" -}}
{{ include "preheat.selector" . }}
app.kubernetes.io/version: {{ .version | quote }}
{{- end }}

{{- define "preheat.image" -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag }}
{{- end -}}
{{- end }}

{{/* "NVIDIA A10G" as nodes are labelled: NVIDIA-A10G. */}}
{{- define "preheat.product" -}}
{{ . | replace " " "-" }}
{{- end }}
