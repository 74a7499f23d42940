# What is known of the types of Cloud TPU slices; bash scripts source this file.
# shellcheck shell=bash

# Sets `hosts`, `chips` of each, `default`, the version of its software, and `accelerator` and `topology`,
# which Google Kubernetes Engine calls them. N counts cores up to v4 and in v5p, two of a chip, else chips.
# shellcheck disable=SC2034 # for scripts that source this
of_type() {
  local kind number sizes
  [[ $1 =~ ^(v[2-4]|v5p|v5litepod|v6e)-([1-9][0-9]{0,3})$ ]] && kind=${BASH_REMATCH[1]} number=${BASH_REMATCH[2]}
  topology='' accelerator=''
  case "${kind:-}" in
    v5litepod | v6e)
      hosts=1 chips=$number
      case "$number" in
        1 | 4 | 8) ;;
        16 | 32 | 64 | 128 | 256) hosts=$((number / 4)) chips=4 ;;
        *) kind='' ;;
      esac
      sizes='1:1x1 4:2x2 8:2x4 16:4x4 32:4x8 64:8x8 128:8x16 256:16x16'
      ;;
    v*)
      hosts=$((number / 8)) chips=4
      [ $((number % 8)) = 0 ] || kind=''
      sizes='8:2x2x1 16:2x2x2 32:2x2x4 64:2x4x4 128:4x4x4 256:4x4x8 512:4x8x8 1024:8x8x8'
      ;;
  esac
  case "${kind:-}" in
    v2 | v3) default=tpu-ubuntu2204-base ;;
    v4) default=tpu-ubuntu2204-base accelerator=tpu-v4-podslice ;;
    v5p) default=v2-alpha-tpuv5 accelerator=tpu-v5p-slice ;;
    v5litepod) default=v2-alpha-tpuv5-lite accelerator=tpu-v5-lite-podslice ;;
    v6e) default=v2-alpha-tpuv6e accelerator=tpu-v6e-slice ;;
    *)
      fail "unknown --type $(printf '%q' "$1"). Known are" \
        "v2-N, v3-N, v4-N and v5p-N with N = 8, 16, 32, ...: multiples of 8 cores" \
        "v5litepod-N and v6e-N with N = 1, 4, 8, 16, 32, 64, 128, 256 chips"
      ;;
  esac
  if [[ " $sizes" =~ \ $number:([0-9x]+) ]]; then topology=${BASH_REMATCH[1]}; fi
}
