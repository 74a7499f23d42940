# A slice of Cloud TPU: it is made, described, spoken to and deleted by gcloud; scripts/tpu/launch sources
# this file.
# shellcheck shell=bash

run() {
  if [ -n "$dry" ]; then quoted "$@" && printf '\n'; else "$@"; fi
}
where=(--zone "$zone" ${project:+--project "$project"})
tpu=(gcloud compute tpus tpu-vm) queue=(gcloud compute tpus queued-resources)
ssh_to() {
  run "${tpu[@]}" ssh "$name" "${where[@]}" ${internal_ip:+"$internal_ip"} --worker "$1" --command "$2"
}
copy() {
  run "${tpu[@]}" scp "$@" "${where[@]}" ${internal_ip:+"$internal_ip"}
}
requested=("${queue[@]}" delete "$name" "${where[@]}" --force)
deletion=("${requested[@]}") # of whatever there is: a request with its slice, or a slice that was made without
pause=${IMR_TPU_PAUSE:-15} most=${IMR_TPU_TRIES:-40} # seconds between attempts, and how many of them
answered='' seen='' made='' # gcloud has answered; this call has a slice, or has asked for one; has made it
marks=labels.imr,schedulingConfig.spot,schedulingConfig.preemptible # of a slice that may be preempted

# State, type and marks of the slice, or of the request for it; nothing if there is none.
described() {
  local said tries=1
  if [ -n "$answered" ]; then tries=$most; fi # else the connection is lost, and may come back
  until said=$("$@" 2>&1) || [[ ${said,,} == *not?found* ]]; do
    say "$said"
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || fail "gcloud does not say whether there is a slice $name; see above."
    sleep "$pause"
  done
  grep -m 1 -E '^[A-Z_]+,' <<<"$said" || true
}
slice() {
  described "${tpu[@]}" describe "$name" "${where[@]}" --format "csv[no-heading](state,acceleratorType,$marks)"
}
request() {
  local node='tpu.nodeSpec[0].node'
  described "${queue[@]}" describe "$name" "${where[@]}" \
    --format "csv[no-heading](state.state,$node.acceleratorType,$node.${marks//,/,$node.})"
}
create() {
  deletion=("${requested[@]}")
  run "${queue[@]}" create "$name" "${where[@]}" --node-id "$name" --accelerator-type "$type" \
    --runtime-version "${version:-$default}" ${spot:+"$spot" --labels imr=spot} \
    ${internal_ip:+--internal-ips} ${network:+--network "$network"} ${service_account:+--service-account "$service_account"}
}
drop() {
  run "${deletion[@]}" --quiet
}

# Sets `state` to that of the `slice` or `request`, or to nothing if there is none, and `may_drop` if this
# call may delete it; stops if its type is another.
take() {
  local said kind mark
  said=$("$1") || exit
  answered=yes
  IFS=, read -r state kind mark <<<"$said" || true
  kind=${kind##*/} may_drop=$made$delete
  case "$mark" in *spot* | *True*) may_drop=yes ;; esac
  if [ "$1$seen$made" = slice ] && [ -n "$state" ]; then
    said=$(request) || exit
    [ -n "$said" ] || deletion=("${tpu[@]}" delete "$name" "${where[@]}")
  fi
  [ -z "$kind" ] || [ "$kind" = "$type" ] ||
    fail "$name is there already, as a slice of --type $kind; found $type." "Take another --name, or delete it: ${deletion[*]}"
}

# Stops unless this call may delete what is $state and was there before it.
need_leave() {
  [ -n "$may_drop" ] ||
    fail "$1 $name is $state, was there before this call, and is not known to be of --spot: it is left alone." \
      "By --delete it is made anew, and its disk is lost. Or delete it: ${deletion[*]}"
}

# Returns once the slice is ready: the one that is there, or a new one.
ensure() {
  local state may_drop asked='' anew='' tries=0
  while :; do
    take slice
    case "$state" in '' | DELETING) ;; *) seen=yes ;; esac
    case "$state" in
      READY) return ;;
      CREATING | STARTING | RESTARTING | REPAIRING | REIMAGING | UNHIDING | DELETING) say "waiting for the slice: $state" ;;
      PREEMPTED | TERMINATED)
        # What its run has saved is in a bucket: --spot comes with one.
        [ -n "$spot" ] || fail "$name is $state. Only with --spot and --bucket is it made anew." "Its disk goes with it: ${deletion[*]}"
        need_leave "the slice"
        say "the slice was preempted; it is made anew"
        drop
        anew=yes
        ;;
      '')
        take request
        case "$state" in
          '' | FAILED | SUSPENDED)
            [ -z "$asked" ] || fail "the slice could not be made; its request is ${state:-gone}." "${queue[*]} describe $name ${where[*]}"
            [ -z "$seen" ] || [ -n "$anew" ] || [ "$spot $state" = '--spot SUSPENDED' ] ||
              fail "the slice is gone, deleted by somebody else, and is not made anew." "The same command makes another."
            if [ -n "$state" ]; then
              need_leave "the request"
              drop
            fi
            create
            asked=yes seen=yes made=yes
            continue
            ;;
          ACTIVE)
            tries=$((tries + 1))
            [ "$tries" -lt "$most" ] || fail "the request for $name is ACTIVE, but there is no slice." "${deletion[*]}"
            ;;
        esac
        case "$state" in DELETING | SUSPENDING) ;; *) seen=yes ;; esac
        say "waiting for the slice: $state" # for as long as it takes
        ;;
      *)
        fail "$name is $state; it is left alone, since its disk would go with it." \
          "Start it: ${tpu[*]} start $name ${where[*]}" "Or delete it: ${deletion[*]}"
        ;;
    esac
    sleep "$pause"
  done
}
