{{- /* The pod: equal to the kustomize overlays, field by field. */ -}}
{{- define "bitserve.podSpec" -}}
{{- $name := include "bitserve.fullname" . -}}
serviceAccountName: {{ $name }}
automountServiceAccountToken: {{ eq .Values.builds.executor "kubernetes" }}
# else a Service named bitserve sets BITSERVE_PORT=tcp://... in every pod, which is no port
enableServiceLinks: false
terminationGracePeriodSeconds: {{ add .Values.preStopSeconds .Values.drainSeconds 20 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with include "bitserve.priorityClass" . }}
priorityClassName: {{ . }}
{{- end }}
{{- if and .Values.gpu.enabled .Values.gpu.runtimeClassName }}
runtimeClassName: {{ .Values.gpu.runtimeClassName }}
{{- end }}
{{- with merge (deepCopy .Values.nodeSelector) (ternary .Values.gpu.nodeSelector dict .Values.gpu.enabled) }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- $gpuTolerations := list (dict "key" "nvidia.com/gpu" "operator" "Exists" "effect" "NoSchedule") }}
{{- with concat .Values.tolerations (ternary $gpuTolerations list .Values.gpu.enabled) }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels: {{- include "bitserve.selector" $ | nindent 8 }}
  {{- end }}
containers:
  - name: server
    image: {{ include "bitserve.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    ports:
      - name: http
        containerPort: 8000
        protocol: TCP
    envFrom:
      - configMapRef:
          name: {{ $name }}
      {{- if and .Values.models.url .Values.models.secret }}
      - secretRef:
          name: {{ .Values.models.secret }}
          optional: true
      {{- end }}
    env:
      {{- if eq .Values.builds.executor "kubernetes" }}
      - name: BITSERVE_POD_NAME
        valueFrom:
          fieldRef:
            fieldPath: metadata.name
      {{- end }}
      - name: BITSERVE_ADMIN_TOKEN
        valueFrom:
          secretKeyRef:
            name: {{ include "bitserve.tokens" . }}
            key: admin-token
            # replicas need the same one; a single server makes one and logs it
            optional: {{ not .Values.models.url }}
      - name: BITSERVE_PLAN_KEY
        valueFrom:
          secretKeyRef:
            name: {{ include "bitserve.tokens" . }}
            key: plan-key
            optional: true
    # Started: the models found at the start are loaded, or known not to load.
    startupProbe:
      httpGet:
        path: /v2/health/started
        port: http
      periodSeconds: 5
      timeoutSeconds: 5
      failureThreshold: {{ max 1 (div .Values.probes.startupSeconds 5) }}
    # Ready: requests are accepted. A model that loads or fails does not change it, only a server that stops or a GPU
    # that is lost.
    readinessProbe:
      httpGet:
        path: /v2/health/ready
        port: http
      periodSeconds: 5
      timeoutSeconds: 5
      failureThreshold: 2
    # Live: the process answers; no longer once a GPU was lost and nobody waits for an answer any more.
    livenessProbe:
      httpGet:
        path: /v2/health/live
        port: http
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 3
    lifecycle:
      preStop:
        sleep:
          seconds: {{ .Values.preStopSeconds }}
    resources:
      {{- $gpus := ternary (dict "nvidia.com/gpu" (int .Values.gpu.count)) dict .Values.gpu.enabled }}
      requests: {{- toYaml (merge (deepCopy .Values.resources.requests) $gpus) | nindent 8 }}
      limits: {{- toYaml (merge (deepCopy .Values.resources.limits) $gpus) | nindent 8 }}
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities:
        drop: [ALL]
    volumeMounts:
      {{- if not .Values.models.url }}
      - name: models
        mountPath: /models
      {{- end }}
      - name: cache
        mountPath: /cache
      - name: tmp
        mountPath: /tmp
volumes:
  {{- if not .Values.models.url }}
  - name: models
    persistentVolumeClaim:
      claimName: {{ default (printf "%s-models" $name) .Values.models.volume.existingClaim }}
  {{- end }}
  - name: cache
    emptyDir:
      sizeLimit: {{ default (ternary "20Gi" "10Gi" (ne .Values.models.url "")) .Values.scratch.cache }}
  - name: tmp
    emptyDir:
      sizeLimit: {{ .Values.scratch.tmp }}
{{- end -}}
