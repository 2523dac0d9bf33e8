#!/usr/bin/env bash
# The steps of the Dockerfile's stage "cpu" without a container engine: the wheel in an environment of its own, an empty
# home, no variables of the caller, no privileges, the health check, and SIGTERM. As root, from the top of the repository:
#   examples/container/run_steps.sh FOLDER MODEL      (FOLDER: empty, outside of the checkout)
set -euo pipefail
folder=$(realpath -m "${1:?the first argument is a folder}") model=$(realpath -e "${2:?the second argument is a model}")
[ -d "$model" ] || { echo "$model is not a folder" >&2; exit 2; }
mkdir -p "$folder/wheels" "$folder/home" "$folder/media" "$folder/tmp"
if [ ! -x "$folder/venv/bin/kinescan" ]; then
    python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir "$folder/wheels" .
    sed 's/+cpu$//' constraints.txt > "$folder/wheels/constraints.txt"
    python3 -m venv "$folder/venv"
    wheel=$(ls "$folder"/wheels/kinescan-*.whl)
    "$folder/venv/bin/python" -m pip install "${wheel}[web,vlm]" -c "$folder/wheels/constraints.txt"
fi
rm -rf "$folder/model"
cp -rL "$model" "$folder/model"
chown -R 10001:10001 "$folder/home" "$folder/tmp" "$folder/model" "$folder/media"
key=$(python3 -c "import secrets; print(secrets.token_hex(24))")
cd "$folder/home"
env -i PATH="$folder/venv/bin:/usr/bin:/bin" HOME="$folder/home" TMPDIR="$folder/tmp" KINESCAN_API_KEY="$key" \
    PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 XDG_CACHE_HOME="$folder/tmp/cache" NUMBA_CACHE_DIR="$folder/tmp/numba" \
    MPLCONFIGDIR="$folder/tmp/matplotlib" \
    setpriv --reuid=10001 --regid=10001 --clear-groups --no-new-privs \
    kinescan serve --host 0.0.0.0 --port 8765 --model "$folder/model" --media "$folder/media" > "$folder/log" 2>&1 &
service=$!
trap 'kill $service 2> /dev/null || true' EXIT
check="import urllib.request as u; u.urlopen('http://127.0.0.1:8765/health', timeout=4)"
for _ in $(seq 120); do
    kill -0 $service || { cat "$folder/log"; exit 1; }
    "$folder/venv/bin/python" -c "$check" 2> /dev/null && break
    sleep 2
done
"$folder/venv/bin/python" -c "$check" && echo "healthy; user: $(ps -o uid= -p $service | tr -d ' ')"
ask() { "$folder/venv/bin/python" - "$1" <<PYTHON
import sys, urllib.request, urllib.error
request = urllib.request.Request("http://127.0.0.1:8765/v1/models", headers={"Authorization": "Bearer " + sys.argv[1]})
try:
    print(urllib.request.urlopen(request, timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
PYTHON
}
echo "with the key: $(ask "$key"), without: $(ask none)"
kill -TERM $service
wait $service && echo "ended by SIGTERM: 0" || echo "ended by SIGTERM: $?"
