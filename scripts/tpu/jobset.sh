# The manifest of an experiment for Google Kubernetes Engine; scripts/tpu/launch sources this file.
# shellcheck shell=bash
#
# kubectl apply -f runs it on a cluster that has JobSet and a node pool of that type. The image needs
# the repository with its dependencies, such as
#
#   FROM python:3.12
#   WORKDIR /imr
#   COPY . .
#   RUN pip install -e '.[experiments,gcs,tpu]'
#
# The service account of the pods, if one is named, must be able to write to the bucket.
#
# A run that was stopped, with exit code 75, or lost its node resumes; any other failure ends the JobSet.

# A word as a string of JSON, and so of YAML, which takes no control characters as they are, and neither
# separators of lines nor what is no character.
json() {
  local LC_ALL=C text=$1 code hex char # bytes of UTF-8
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  if [[ $text == *[^' '-'~']* ]]; then
    for code in {1..31} {127..159} 2028 2029 feff fffe ffff; do
      case "$code" in
        2028) char=$'\xe2\x80\xa8' ;;
        2029) char=$'\xe2\x80\xa9' ;;
        feff) char=$'\xef\xbb\xbf' ;;
        fffe) char=$'\xef\xbf\xbe' ;;
        ffff) char=$'\xef\xbf\xbf' ;;
        *)
          printf -v hex %02x "$code"
          if [ "$code" -lt 128 ]; then printf -v char %b "\\x$hex"; else printf -v char %b "\\xc2\\x$hex"; fi
          code=00$hex
          ;;
      esac
      text=${text//"$char"/"\\u$code"}
    done
  fi
  printf '"%s"' "$text"
}

# Stops if no JobSet can be made of the flags.
check_jobset() {
  local flag word
  for word in "$@"; do
    iconv -f UTF-8 -t UTF-8 <<<"$word" >/dev/null 2>&1 ||
      fail "$(printf '%q' "$word") must be UTF-8, as all is in a JobSet."
  done
  [ -n "$bucket" ] || fail "--gke needs --bucket: the disks of a pod go with it."
  # Kubernetes cuts names of pods after 58 characters; JobSet looks for NAME-slice-0-NUMBER whole.
  [ "${#name}" -le 40 ] || fail "--name must have at most 40 letters with --gke, which makes names of pods of it; found ${#name}."
  [ -n "$accelerator" ] && [ -n "$topology" ] ||
    fail "--gke knows no slice of --type $type. Known to it are" \
      "v4-N and v5p-N with N = 8, 16, 32, 64, 128, 256, 512, 1024 cores" \
      "v5litepod-N and v6e-N with N = 1, 4, 8, 16, 32, 64, 128, 256 chips"
  for flag in version network internal_ip keep delete; do
    [ -z "${!flag}" ] || fail "leave out --${flag//_/-}: it is of a slice of Cloud TPU, and means nothing to --gke."
  done
}

jobset() {
  local word
  cat <<MANIFEST
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(json "$name")
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 100 # preemptions
    rules:
      - name: failed
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          podFailurePolicy:
            rules: # the first that fits; a failure that is only counted restarts the JobSet
              - action: Count
                onPodConditions:
                  - {type: DisruptionTarget, status: "True"} # with whatever exit code
              - action: FailJob
                onExitCodes: {containerName: imr, operator: NotIn, values: [75]}
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology
MANIFEST
  if [ -n "$spot" ]; then
    cat <<MANIFEST
                cloud.google.com/gke-spot: "true"
              tolerations:
                - key: cloud.google.com/gke-spot
                  operator: Equal
                  value: "true"
                  effect: NoSchedule
MANIFEST
  fi
  if [ -n "$service_account" ]; then printf '              serviceAccountName: %s\n' "$(json "$service_account")"; fi
  cat <<MANIFEST
              containers:
                - name: imr
                  image: $(json "$image")
                  env:
                    - {name: IMR_DISTRIBUTED, value: "1"}
                    - {name: IMR_PREEMPTED_CODE, value: "75"}
                    - {name: JAX_PLATFORMS, value: tpu}
                  ports:
                    - containerPort: 8471
                    - containerPort: 8476
                  resources:
                    requests: {google.com/tpu: $chips}
                    limits: {google.com/tpu: $chips}
                  command:
MANIFEST
  # Kubernetes reads $$ as $, and $(NAME) as the variable.
  for word in python -P "$@"; do printf '                    - %s\n' "$(json "${word//\$/\$\$}")"; done
}
