#!/usr/bin/env bash
# The image of serving/container/Dockerfile, built and run by buildah: no Docker engine is needed.
#
#   serving/container/build.sh          build it
#   serving/container/build.sh test     run it as SageMaker does, and the contract suite against it
#
# Needs Linux, root, and of Debian: buildah, and debootstrap where no image can be pulled.
#   BASE_IMAGE   what it is built on; without it, Debian bookworm with its Python 3.11 is installed
#                by debootstrap from DEBIAN_MIRROR and stands in for python:3.11-slim-bookworm
#   PYTHON       runs the contract suite (.venv/bin/python)
#   EXTRAS       what the server is installed with (serving)
# Images are kept under build/container, away from the user's own.
set -euo pipefail
cd "$(dirname "$0")/../.."

state=$PWD/build/container
image=localhost/fastrank
python=${PYTHON:-.venv/bin/python}
# vfs and chroot ask nothing of the kernel that a container, where this may run, does not grant.
export BUILDAH_ISOLATION=chroot
buildah=(buildah --root "$state/storage" --runroot "$state/run" --storage-driver vfs)

say() { printf '%s\n' "container: $*" >&2; }
fail() { say "$*"; exit 1; }

build() {
  mkdir -p "$state"
  local arguments=(--format docker --layers=false -f serving/container/Dockerfile -t "$image")
  if [[ -n ${BASE_IMAGE:-} ]]; then
    arguments+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
  else
    base
    # Debian's own Python has its headers in a package of their own.
    arguments+=(--build-arg "BASE_IMAGE=$image-base" --build-arg "BUILD_PACKAGES=g++ python3-dev")
  fi
  # Where the way out is watched by a proxy, its certificate is trusted while the image is built.
  local trusted=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
  if [[ -f $trusted ]]; then
    printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' > "$state/pip.conf"
    arguments+=(-v "$trusted:/etc/ssl/certs/ca-certificates.crt:ro")
    arguments+=(-v "$state/pip.conf:/etc/pip.conf:ro")
  fi
  [[ -z ${EXTRAS:-} ]] || arguments+=(--build-arg "EXTRAS=$EXTRAS")
  arguments+=(--build-arg "VERSION=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)")
  arguments+=(--build-arg "REVISION=$(git rev-parse HEAD 2> /dev/null || echo unknown)")
  local began=$SECONDS
  "${buildah[@]}" bud "${arguments[@]}" . > "$state/build.log" 2>&1 \
    || { tail -n 30 "$state/build.log" >&2; fail "not built; all of it: $state/build.log"; }
  "${buildah[@]}" rmi --prune --force >> "$state/build.log" 2>&1 || true  # the one before
  say "built $image in $((SECONDS - began)) s"
}

base() {
  if "${buildah[@]}" inspect --type image "$image-base" > /dev/null 2>&1; then return; fi
  local began=$SECONDS root=$state/base
  rm -rf "$root"
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$root" \
    "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" > "$state/base.log" 2>&1 \
    || fail "debootstrap failed: $state/base.log"
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*
  printf 'FROM scratch\nCOPY . /\n' > "$state/base.Dockerfile"
  "${buildah[@]}" bud -f "$state/base.Dockerfile" -t "$image-base" "$root" >> "$state/base.log" 2>&1 \
    || fail "the base was not built: $state/base.log"
  rm -rf "$root"
  say "made $image-base in $((SECONDS - began)) s"
}

# ---- Running it ------------------------------------------------------------------------------
# In a network of its own: port 8080 is free there, and nothing outside can be reached.

of_image() {  # of_image FORMAT: what the image says about itself
  "${buildah[@]}" inspect --type image --format "$1" "$image"
}

start() {  # start [NAME=VALUE...]: as `docker run IMAGE serve`, the model mounted read-only
  local environment entry
  mapfile -t environment < <(of_image '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' | sed '/^$/d')
  mapfile -t entry < <(of_image '{{range .OCIv1.Config.Entrypoint}}{{println .}}{{end}}' | sed '/^$/d')
  [[ ${#entry[@]} -gt 0 ]] || fail "the image has no ENTRYPOINT in exec form"
  # shellcheck disable=SC2016  # expanded in the namespaces
  unshare --mount --pid --uts --ipc --fork --kill-child bash -c '
    set -e
    root=$1 model=$2; shift 2
    mount --make-rprivate /
    mount --bind "$model" "$root/opt/ml/model"
    mount -o remount,bind,ro "$root/opt/ml/model"
    mount -t proc proc "$root/proc"
    for device in null zero random urandom; do
      touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"
    done
    exec chroot "$root" /usr/bin/env -i "$@"
  ' container "$root" "$state/model" "${environment[@]}" "$@" "${entry[@]}" serve \
    > "$state/stdout" 2> "$state/stderr" &
  outside=$!
}

until_ready() {  # until_ready PORT
  local tries
  for tries in $(seq 1 600); do
    if "$python" - "$1" 2> /dev/null <<< '
import sys, urllib.request
urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/ping", timeout=2)'; then
      inside=$(cat "/proc/$outside/task/$outside/children")
      inside=${inside%% *}
      return
    fi
    kill -0 "$outside" 2> /dev/null || { cat "$state/stderr" >&2; fail "it ended before /ping was 200"; }
    sleep 0.05
  done
  cat "$state/stderr" >&2
  fail "/ping was not 200 after $tries tries"
}

stop() {  # SIGTERM, as the platform sends it to process 1; its exit code is wanted to be 0
  local code=0
  kill -TERM "$inside"
  timeout 30 tail --pid="$outside" -f /dev/null || fail "it did not end within 30 s of SIGTERM"
  wait "$outside" || code=$?
  outside=
  [[ $code -eq 0 ]] || { cat "$state/stderr" >&2; fail "exit code $code after SIGTERM"; }
}

clean() {
  [[ -z ${outside:-} ]] || kill -KILL "$outside" 2> /dev/null || true
  [[ -z ${working:-} ]] || "${buildah[@]}" rm "$working" > /dev/null
}

run_tests() {
  "${buildah[@]}" inspect --type image "$image" > /dev/null 2>&1 || fail "build it first"
  [[ -x $python ]] || fail "no $python: set PYTHON"
  ip link set lo up
  trap clean EXIT
  working=$("${buildah[@]}" from "$image")
  root=$("${buildah[@]}" mount "$working")
  rm -rf "$state/model"
  "$python" tests/servers.py "$state/model"
  mkdir -p "$root/opt/ml/model" "$root/proc" "$root/dev"

  local label=com.amazonaws.sagemaker.capabilities.accept-bind-to-port
  [[ $(of_image "{{index .OCIv1.Config.Labels \"$label\"}}") == true ]] || fail "no label $label"
  local name
  for name in gcc g++ cc c++ make ld; do
    if chroot "$root" /bin/sh -c "command -v $name" > /dev/null; then fail "$name is in the image"; fi
  done
  for name in root/.cache src wheels opt/builder etc/pip.conf; do
    [[ ! -e $root/$name ]] || fail "/$name is in the image"
  done
  say "$(du -sm "$root" | cut -f1) MB, of which $(du -sm "$root/opt/fastrank" | cut -f1) MB ours"

  start
  until_ready 8080
  [[ $(awk '/^NSpid:/ {print $NF}' "/proc/$inside/status") == 1 ]] || fail "the app is not process 1"
  [[ $(tr '\0' ' ' < "/proc/$inside/cmdline") == *"-m fastrank_serving serve "* ]] \
    || fail "process 1 is not the app"
  ! touch "/proc/$inside/root/opt/ml/model/x" 2> /dev/null || fail "the model can be written"
  FASTRANK_URL=http://127.0.0.1:8080 "$python" -m pytest -q -p no:cacheprovider \
    tests/test_serving_contract.py tests/test_serving_gateway.py -k "not TestTemplate"
  chroot "$root" /opt/fastrank/bin/python -m fastrank_serving ping || fail "its health check fails"
  stop
  say "ended with 0 on SIGTERM"
  ! chroot "$root" /opt/fastrank/bin/python -m fastrank_serving ping \
    || fail "its health check finds a server that has ended"

  start SAGEMAKER_BIND_TO_PORT=8099 SAGEMAKER_MODEL_SERVER_WORKERS=2
  until_ready 8099
  stop
  say "listened on SAGEMAKER_BIND_TO_PORT, with two workers"
}

case ${1:-build} in
  build) build ;;
  test) exec unshare --net "$0" test-inside ;;
  test-inside) run_tests ;;
  *) fail "expected build or test, got $1" ;;
esac
