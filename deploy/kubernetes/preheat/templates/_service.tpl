{{- define "preheat.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "preheat.name" . }}
  labels:
    {{- include "preheat.labels" . | nindent 4 }}
spec:
  selector:
    {{- include "preheat.selector" . | nindent 4 }}
  ports:
    - {name: http, port: 80, targetPort: http, protocol: TCP}
{{- end }}

{{- define "preheat.budget" -}}
apiVersion: {{ .budget }}
kind: PodDisruptionBudget
metadata:
  name: {{ include "preheat.name" . }}
  labels:
    {{- include "preheat.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "preheat.selector" . | nindent 6 }}
{{- end }}
