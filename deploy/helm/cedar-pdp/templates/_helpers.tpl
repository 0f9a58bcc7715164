{{/* Names and labels, and the container itself, which stands in two places. */}}

{{- define "cedar-pdp.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "cedar-pdp.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "cedar-pdp.labels" -}}
{{ include "cedar-pdp.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "cedar-pdp.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "cedar-pdp.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "cedar-pdp.policies" -}}
{{- default (printf "%s-policies" (include "cedar-pdp.fullname" .)) .Values.policies.existingConfigMap -}}
{{- end -}}

{{/* The configuration file: what the chart decides, then what the values say, as TOML. */}}
{{- define "cedar-pdp.config" -}}
{{- if and (ne .Values.tls.clientAuth "none") (not .Values.tls.secretName) -}}
{{- fail "tls.clientAuth needs tls.secretName: without TLS no caller can show a certificate" -}}
{{- end -}}
{{- $own := dict "policies" "/policies" -}}
{{- if .Values.containers -}}
{{- if .Values.tls.secretName -}}
{{- fail "a sidecar answers on a Unix socket, where there is no TLS: leave tls.secretName empty" -}}
{{- end -}}
{{- $_ := set $own "listen" (list "unix:/run/cedar-pdp/pdp.sock") -}}
{{- else -}}
{{- $_ := set $own "listen" (list "0.0.0.0:50051") -}}
{{- if .Values.tls.secretName -}}
{{- $_ := set $own "tls_cert" "/etc/cedar-pdp/tls/tls.crt" -}}
{{- $_ := set $own "tls_key" "/etc/cedar-pdp/tls/tls.key" -}}
{{- $_ := set $own "tls_client_auth" .Values.tls.clientAuth -}}
{{- if ne .Values.tls.clientAuth "none" -}}
{{- $_ := set $own "tls_client_ca" "/etc/cedar-pdp/tls/ca.crt" -}}
{{- end -}}
{{- else if not .Values.config.insecure -}}
{{- fail "a separate service needs tls.secretName; or set config.insecure: true to allow plaintext to everyone on the network" -}}
{{- end -}}
{{- end -}}
{{- range $key, $value := merge $own .Values.config }}
{{ $key }} = {{ if kindIs "float64" $value }}{{ if eq (floor $value) $value }}{{ int64 $value }}{{ else }}{{ $value }}{{ end }}{{ else }}{{ toJson $value }}{{ end }}
{{- end -}}
{{- end -}}

{{- define "cedar-pdp.container" -}}
- name: cedar-pdp
  image: {{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- if .Values.containers }}
  restartPolicy: Always
  {{- end }}
  env:
    - name: CEDAR_PDP_CONFIG
      value: /etc/cedar-pdp/config/config.toml
    - name: POD_IP
      valueFrom:
        fieldRef:
          fieldPath: status.podIP
    - name: CEDAR_PDP_ADMIN_LISTEN
      value: "$(POD_IP):{{ .Values.admin.port }}"
    {{- with .Values.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    {{- if not .Values.containers }}
    - name: grpc
      containerPort: 50051
    {{- end }}
    - name: admin
      containerPort: {{ .Values.admin.port }}
  startupProbe:
    httpGet:
      path: /readyz
      port: admin
    periodSeconds: 1
    failureThreshold: 60
  readinessProbe:
    httpGet:
      path: /readyz
      port: admin
    periodSeconds: 5
  livenessProbe:
    httpGet:
      path: /livez
      port: admin
    periodSeconds: 10
    failureThreshold: 3
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    capabilities:
      drop: [ALL]
    seccompProfile:
      type: RuntimeDefault
  {{- with .Values.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - name: policies
      mountPath: /policies
      readOnly: true
    - name: config
      mountPath: /etc/cedar-pdp/config
      readOnly: true
    {{- if .Values.containers }}
    - name: socket
      mountPath: /run/cedar-pdp
    {{- else if .Values.tls.secretName }}
    - name: tls
      mountPath: /etc/cedar-pdp/tls
      readOnly: true
    {{- end }}
    {{- range .Values.configVolumes }}
    - name: {{ printf "given-%s" .name }}
      mountPath: {{ printf "/etc/cedar-pdp/%s" .name }}
      readOnly: true
    {{- end }}
    {{- if .Values.logVolume }}
    - name: log
      mountPath: /var/log/cedar-pdp
    {{- end }}
{{- end -}}
