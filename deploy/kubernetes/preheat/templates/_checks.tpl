{{/* What cannot work is told before anything is installed: what, where, and what to do. */}}

{{- define "preheat.check" -}}
{{- if not .Values.variants -}}
{{- fail "variants: empty; name those of the image that are to be served: --set-json 'variants={\"seq8-best\":{}}'" -}}
{{- end -}}
{{- if and (not .Values.keys.secret) (not .Values.keys.none) -}}
{{- fail "keys: nobody would have to show a key. Set keys.secret to a Secret made of a file of `preheat serve keys add`, or keys.none: true where something else lets nobody in" -}}
{{- end -}}
{{- $keda := eq .Values.appliance.scaling.by "keda" -}}
{{- $names := dict -}}
{{- range $variant, $own := .Values.variants -}}
{{- $one := mergeOverwrite (deepCopy $.Values.appliance) $own -}}
{{- $keda = or $keda (eq $one.scaling.by "keda") -}}
{{- range $one.models -}}
{{- if hasKey $names . -}}
{{- fail (printf "variants.%s.models: %s is a name of %s already; a name leads to one variant" $variant . (get $names .)) -}}
{{- end -}}
{{- $_ := set $names . $variant -}}
{{- end -}}
{{- end -}}
{{- if and .Values.network.policy (not .Values.network.from) (or .Values.routes.enabled .Values.monitor.enabled $keda) -}}
{{- fail "network.from: empty, which lets in this namespace alone; a Gateway and a Prometheus of another would be kept out. Name them all, or network.policy: false" -}}
{{- end -}}
{{- if and .Values.monitor.enabled .Values.keys.secret (not .Values.monitor.key.secret) -}}
{{- fail "monitor.key.secret: empty, but keys are asked for: Prometheus would be refused. Name a Secret with a key made by `preheat serve keys add --routes /metrics`" -}}
{{- end -}}
{{- if and .Values.routes.enabled (gt (len .Values.variants) 16) -}}
{{- fail (printf "routes.enabled: %d variants; an HTTPRoute has 16 rules at most: use several releases" (len .Values.variants)) -}}
{{- end -}}
{{- if and .Values.routes.enabled (not .Values.routes.gateways) -}}
{{- fail "routes.gateways: empty; name the Gateway that the routes belong to: [{name: …, namespace: …}]" -}}
{{- end -}}
{{- end }}

{{/* Of one variant: {variant, one (its values), families (the allow-list), routes}. */}}
{{- define "preheat.checkVariant" -}}
{{- $at := printf "variants.%s" .variant -}}
{{- $gpu := .one.gpu -}}
{{- if gt (len .name) 52 -}}
{{- fail (printf "%s: %s has %d letters, of which Kubernetes leaves 52 once pods are named: take a shorter release" $at .name (len .name)) -}}
{{- end -}}
{{- if $gpu.baked -}}
{{- $fit := list $gpu.baked -}}
{{- range .families -}}
{{- if has $gpu.baked . }}{{ $fit = concat $fit . }}{{ end -}}
{{- end -}}
{{- range $gpu.nodes -}}
{{- if not (has . $fit) -}}
{{- fail (printf "%s.gpu.nodes: %s is no sibling of %s, which the caches were baked for: they would miss there. Allowed: %s; for another card bake an image of its own" $at . $gpu.baked ($fit | uniq | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- else if $gpu.nodes -}}
{{- fail (printf "%s.gpu.nodes: %s, but gpu.baked is empty: an image for no GPU" $at ($gpu.nodes | join ", ")) -}}
{{- end -}}
{{- $scaling := .one.scaling -}}
{{- if and (ne $scaling.by "none") (gt (int $scaling.min) (int $scaling.max)) -}}
{{- fail (printf "%s.scaling: min %d is above max %d" $at (int $scaling.min) (int $scaling.max)) -}}
{{- end -}}
{{- if and (eq $scaling.by "hpa") (not .hpa) -}}
{{- fail (printf "%s.scaling.by: hpa needs autoscaling/v2, which this cluster (older than 1.23) has not" $at) -}}
{{- end -}}
{{- if and (eq (toString .one.rollout.maxSurge | trimSuffix "%") "0") (eq (toString .one.rollout.maxUnavailable | trimSuffix "%") "0") -}}
{{- fail (printf "%s.rollout: maxSurge and maxUnavailable are both 0: no pod could ever be exchanged" $at) -}}
{{- end -}}
{{- if and .routes (not .one.models) -}}
{{- fail (printf "%s.models: empty, and routes.enabled: no request would be routed to it" $at) -}}
{{- end -}}
{{- $sources := 0 -}}
{{- range list "image" "init" "claim" "node" -}}
{{- if get $.one.blobs . }}{{ $sources = add1 $sources }}{{ end -}}
{{- end -}}
{{- if gt $sources 1 -}}
{{- fail (printf "%s.blobs: %d sources; at most one of image, init, claim and node" $at $sources) -}}
{{- end -}}
{{- if and .one.blobs.serve (eq $sources 0) -}}
{{- fail (printf "%s.blobs.serve: %s, but no source of blobs is named" $at .one.blobs.serve) -}}
{{- end -}}
{{- end }}
