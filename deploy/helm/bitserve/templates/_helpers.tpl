{{- define "bitserve.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "bitserve.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" -}}
{{- else if contains (include "bitserve.name" .) .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "bitserve.name" .) | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "bitserve.installation" -}}
app.kubernetes.io/name: {{ include "bitserve.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "bitserve.selector" -}}
{{ include "bitserve.installation" . }}
app.kubernetes.io/component: server
{{- end -}}

{{- /* of pods that the server makes: it takes the first two labels from its own */ -}}
{{- define "bitserve.buildSelector" -}}
{{ include "bitserve.installation" . }}
app.kubernetes.io/component: build
{{- end -}}

{{- define "bitserve.labels" -}}
{{ include "bitserve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "bitserve.image" -}}
{{- $default := ternary "bitserve-gpu" "bitserve" .Values.gpu.enabled -}}
{{- printf "%s:%s" (default $default .Values.image.repository) (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{- define "bitserve.tokens" -}}
{{- default (printf "%s-tokens" (include "bitserve.fullname" .)) .Values.tokens.existingSecret -}}
{{- end -}}

{{- define "bitserve.priorityClass" -}}
{{- if .Values.priorityClass.create -}}
{{- default (include "bitserve.fullname" .) .Values.priorityClass.name -}}
{{- else -}}
{{- .Values.priorityClass.name -}}
{{- end -}}
{{- end -}}

{{- /* What the chart cannot make right by itself: a message instead of pods that never start. */ -}}
{{- define "bitserve.check" -}}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled -}}
{{- fail "autoscaling and keda would pull at one Deployment: enable one of them" -}}
{{- end -}}
{{- if and .Values.models.url (not (or .Values.tokens.adminToken .Values.tokens.existingSecret)) -}}
{{- fail "replicas need one admin token: set tokens.existingSecret, or tokens.adminToken" -}}
{{- end -}}
{{- $scaled := or .Values.autoscaling.enabled .Values.keda.enabled (gt (int .Values.replicas) 1) -}}
{{- if and (not .Values.models.url) $scaled -}}
{{- fail "replicas on several nodes cannot mount one volume: set models.url, or replicas: 1 without autoscaling" -}}
{{- end -}}
{{- if and (eq .Values.builds.executor "kubernetes") (not .Values.models.url) -}}
{{- fail "builds as Jobs run on other nodes, which share a store alone: set models.url, or builds.executor: process" -}}
{{- end -}}
{{- end -}}
