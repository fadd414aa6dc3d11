{{/*
Both count what a replica has been given, at its engine and waiting, and how full its KV cache is;
whichever asks for more replicas decides. One pod at a time goes, after it was calm for a while: each
that ends has requests to finish.
*/}}
{{- define "preheat.calm" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies:
    - {type: Percent, value: 100, periodSeconds: 15}
scaleDown:
  stabilizationWindowSeconds: {{ int . }}
  policies:
    - {type: Pods, value: 1, periodSeconds: 30}
{{- end }}

{{- define "preheat.hpa" -}}
{{- $scaling := .one.scaling -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "preheat.name" . }}
  labels:
    {{- include "preheat.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ include "preheat.name" . }}}
  minReplicas: {{ int $scaling.min }}
  maxReplicas: {{ int $scaling.max }}
  metrics:
    {{- /* Each is judged by itself, so that they are not added up: at work, then whoever waits. */}}
    - type: Pods
      pods:
        metric: {name: preheat_requests_in_flight}
        target: {type: AverageValue, averageValue: {{ int $scaling.requests | quote }}}
    - type: Pods
      pods:
        metric: {name: preheat_requests_waiting}
        target: {type: AverageValue, averageValue: "1"}
    - type: Pods
      pods:
        metric: {name: vllm_kv_cache_usage_perc}
        target: {type: AverageValue, averageValue: {{ printf "%dm" (mulf $scaling.kvCache 1000 | int) }}}
  behavior:
    {{- include "preheat.calm" $scaling.calmSeconds | nindent 4 }}
{{- end }}

{{- define "preheat.keda" -}}
{{- $scaling := .one.scaling -}}
{{- /* A pattern of pods' names would hold those of seq8-best for seq8, too. */ -}}
{{- $pods := printf "namespace=%q, service=%q" .namespace (include "preheat.name" .) -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ include "preheat.name" . }}
  labels:
    {{- include "preheat.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {name: {{ include "preheat.name" . }}}
  minReplicaCount: {{ int $scaling.min }}
  maxReplicaCount: {{ int $scaling.max }}
  pollingInterval: 5
  {{- /* A Prometheus that knows nothing is no calm: then there stay as many as there are. */}}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        {{- include "preheat.calm" $scaling.calmSeconds | nindent 8 }}
  triggers:
    - type: prometheus
      metadata:
        serverAddress: {{ $scaling.prometheus }}
        query: {{ printf "sum(preheat_requests_in_flight{%s}) + sum(preheat_requests_waiting{%s})" $pods $pods | squote }}
        threshold: {{ int $scaling.requests | quote }}
        ignoreNullValues: "false"
    - type: prometheus
      metadata:
        serverAddress: {{ $scaling.prometheus }}
        query: {{ printf "sum(vllm:kv_cache_usage_perc{%s})" $pods | squote }}
        threshold: {{ $scaling.kvCache | quote }}
        ignoreNullValues: "false"
{{- end }}
