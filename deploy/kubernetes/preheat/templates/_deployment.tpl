{{- define "preheat.deployment" -}}
{{- $one := .one -}}
{{- $seconds := $one.seconds -}}
{{- $blobs := $one.blobs -}}
{{- $shared := or $blobs.image $blobs.init $blobs.claim $blobs.node -}}
{{- $ranks := and $one.gpu.baked (gt (int $one.gpu.count) 1) -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "preheat.name" . }}
  labels:
    {{- include "preheat.labels" . | nindent 4 }}
spec:
  {{- if eq $one.scaling.by "none" }}
  replicas: {{ int $one.replicas }}
  {{- else }}
  {{- /* Whoever scales it has said how many; before that, no fewer than there were to be. */}}
  {{- $there := (lookup "apps/v1" "Deployment" .namespace (include "preheat.name" .)).spec | default dict }}
  replicas: {{ $there.replicas | default (max (int $one.replicas) (int $one.scaling.min)) | int }}
  {{- end }}
  revisionHistoryLimit: 5
  {{- /* A pod that is not ready in that time never will be: the rollout has failed. */}}
  progressDeadlineSeconds: {{ add (int $seconds.place) (int $seconds.start) (int $seconds.stop) (int $seconds.margin) }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxSurge: {{ $one.rollout.maxSurge }}
      maxUnavailable: {{ $one.rollout.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "preheat.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "preheat.labels" . | nindent 8 }}
      {{- with $one.annotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ .release | quote }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- with .values.image.pullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - name: {{ . }}
        {{- end }}
      {{- end }}
      terminationGracePeriodSeconds: {{ add (int $seconds.leave) (int $seconds.drain) (int $seconds.stop) (int $seconds.margin) }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        seccompProfile:
          type: RuntimeDefault
      {{- with $one.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if $one.gpu.baked }}
      {{- with $one.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
              - matchExpressions:
                  - key: {{ $one.gpu.label }}
                    operator: In
                    values:
                      {{- range $one.gpu.nodes | default (list $one.gpu.baked) }}
                      - {{ include "preheat.product" . }}
                      {{- end }}
      {{- end }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "preheat.selector" . | nindent 14 }}
      {{- if $blobs.init }}
      initContainers:
        - name: blobs
          image: {{ $blobs.init }}
          imagePullPolicy: {{ .values.image.pullPolicy }}
          command: [cp, -R, /blobs/., {{ $blobs.mount }}]
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          volumeMounts:
            - {name: blobs, mountPath: {{ $blobs.mount }}}
      {{- end }}
      containers:
        - name: appliance
          image: {{ include "preheat.image" .values.image }}
          imagePullPolicy: {{ .values.image.pullPolicy }}
          env:
            - {name: VARIANT, value: {{ .variant | quote }}}
            {{- if $blobs.serve }}
            - {name: MODEL, value: {{ printf "%s/%s" $blobs.mount $blobs.serve | quote }}}
            - {name: PREHEAT_BAKED_ROOT, value: {{ printf "%s/baked" $blobs.mount | quote }}}
            {{- end }}
            - {name: PREHEAT_START_SECONDS, value: {{ int $seconds.start | quote }}}
            - {name: PREHEAT_DRAIN_SECONDS, value: {{ int $seconds.drain | quote }}}
            - {name: PREHEAT_STOP_SECONDS, value: {{ int $seconds.stop | quote }}}
            {{- if .values.keys.secret }}
            - {name: PREHEAT_KEYS_FILE, value: /etc/preheat/{{ .values.keys.file }}}
            {{- else }}
            - {name: PREHEAT_NO_KEYS, value: "true"}
            {{- end }}
            {{- with $one.models }}
            - {name: PREHEAT_MODEL_ALIASES, value: {{ join "," . | quote }}}
            {{- end }}
            {{- range $name, $value := merge (dict) $one.settings (dict "PREHEAT_LOG_FORMAT" "json") }}
            {{- /* A whole number as it was written, not 2e+06. */}}
            - {name: {{ $name }}, value: {{ (ternary (int64 $value | toString) (toString $value) (and (kindIs "float64" $value) (eq (floor $value) $value))) | quote }}}
            {{- end }}
          ports:
            - {name: http, containerPort: 8000, protocol: TCP}
          {{- /* Ready is a token generated. Asked each second: a baked start takes few. Longer than the
                 gateway waits itself, so that it can say what took so long. */}}
          startupProbe:
            httpGet: {path: /ready, port: http}
            periodSeconds: 1
            timeoutSeconds: 3
            failureThreshold: {{ add (int $seconds.start) (int $seconds.stop) (int $seconds.margin) }}
          readinessProbe:
            httpGet: {path: /ready, port: http}
            periodSeconds: 2
            timeoutSeconds: 3
            failureThreshold: 2
          {{- /* The gateway's own life alone: it starts an engine that died again by itself. */}}
          livenessProbe:
            httpGet: {path: /health, port: http}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          lifecycle:
            preStop:
              exec:
                command: [sh, -c, "kill -USR1 1; sleep {{ int $seconds.leave }}"]
          resources:
            {{- $limits := $one.resources.limits | default dict }}
            {{- if $one.gpu.baked }}
            {{- $limits = merge (dict $one.gpu.resource (int $one.gpu.count | toString)) $limits }}
            {{- end }}
            {{- with $one.resources.requests }}
            requests:
              {{- toYaml . | nindent 14 }}
            {{- end }}
            {{- with $limits }}
            limits:
              {{- toYaml . | nindent 14 }}
            {{- end }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities:
              drop: [ALL]
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            {{- if .values.keys.secret }}
            - {name: keys, mountPath: /etc/preheat, readOnly: true}
            {{- end }}
            {{- if $shared }}
            - {name: blobs, mountPath: {{ $blobs.mount }}, readOnly: true}
            {{- end }}
            {{- if $ranks }}
            - {name: shm, mountPath: /dev/shm}
            {{- end }}
      volumes:
        - name: tmp
          emptyDir: {medium: Memory, sizeLimit: {{ $one.tmp }}}
        {{- if .values.keys.secret }}
        - name: keys
          secret: {secretName: {{ .values.keys.secret }}, defaultMode: 0440}
        {{- end }}
        {{- if $blobs.image }}
        - name: blobs
          image: {reference: {{ $blobs.image }}, pullPolicy: {{ .values.image.pullPolicy }}}
        {{- else if $blobs.init }}
        - name: blobs
          emptyDir: {}
        {{- else if $blobs.claim }}
        - name: blobs
          persistentVolumeClaim: {claimName: {{ $blobs.claim }}, readOnly: true}
        {{- else if $blobs.node }}
        - name: blobs
          hostPath: {path: {{ $blobs.node }}, type: Directory}
        {{- end }}
        {{- if $ranks }}
        - name: shm
          emptyDir: {medium: Memory, sizeLimit: 1Gi}
        {{- end }}
{{- end }}
