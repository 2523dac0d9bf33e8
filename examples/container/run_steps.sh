#!/usr/bin/env bash
# The steps of the Dockerfile's stage "cpu" without a container engine, in one run: the wheel in an environment of its
# own; then the service in a root folder that holds only the system's programs, that environment, the model and /tmp,
# as user 10001 without privileges and without the caller's variables; the health check, the key, and SIGTERM while a
# request is under way. As root on Linux, from the top of the repository:
#   examples/container/run_steps.sh FOLDER MODEL      (FOLDER: not there yet, outside of the checkout)
# PYTHON=python3.12 chooses the Python.
set -euo pipefail
folder=$(realpath -m "${1:?the first argument is a folder}") model=$(realpath -e "${2:?the second argument is a model}")
[ -d "$model" ] || { echo "$model is not a folder" >&2; exit 2; }
[ ! -e "$folder" ] || { echo "$folder is there already; name one that is not" >&2; exit 2; }
python=${PYTHON:-python3}
mkdir -p "$folder/wheels" "$folder/media" "$folder/root"

# FROM ... AS wheel, and the environment of stage cpu
"$python" -m pip wheel -q --no-cache-dir --no-deps --wheel-dir "$folder/wheels" .
sed 's/+cpu$//' constraints.txt > "$folder/wheels/constraints.txt"
"$python" -m venv "$folder/venv"
wheel=$(ls "$folder"/wheels/kinescan-*.whl)
"$folder/venv/bin/python" -m pip install -q --no-cache-dir "${wheel}[web,vlm]" -c "$folder/wheels/constraints.txt"
cp -rL "$model" "$folder/model"
chmod -R a+rX "$folder/model" "$folder/venv"
echo "installed: ${wheel##*/}, $("$folder/venv/bin/python" --version)"

base=$("$python" -c "import sys; print(sys.base_prefix)")
key=$("$python" -c "import secrets; print(secrets.token_hex(24))")
export folder base key

# USER, ENV and CMD; read_only and cap_drop of the compose file
enter() {
    root=$folder/root
    mount --make-rprivate /
    mount -t tmpfs -o mode=755 tmpfs "$root"
    # before the others: the folder may lie below /tmp
    mkdir -p "$root/tmp"
    mount -t tmpfs -o mode=1777,size=1g tmpfs "$root/tmp"
    for place in /usr /lib /lib64 /bin /sbin "$base" "$folder/venv" "$folder/model" "$folder/media"; do
        if [ -L "$place" ]; then
            cp -P "$place" "$root$place"
        elif [ -d "$place" ] && [ ! -e "$root$place/." ]; then
            mkdir -p "$root$place"
            mount --bind "$place" "$root$place"
            mount -o remount,bind,ro "$root$place"
        fi
    done
    mkdir -p "$root/etc" "$root/proc" "$root/dev" "$root/home/kinescan"
    echo "kinescan:x:10001:10001::/home/kinescan:/bin/sh" > "$root/etc/passwd"
    echo "127.0.0.1 localhost" > "$root/etc/hosts"
    mount --rbind /proc "$root/proc"
    for device in null zero urandom; do
        touch "$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    mount -o remount,ro "$root"
    exec chroot "$root" /usr/bin/env -i PATH="$folder/venv/bin:/usr/bin:/bin" HOME=/home/kinescan KINESCAN_API_KEY="$key" \
        PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 XDG_CACHE_HOME=/tmp/cache NUMBA_CACHE_DIR=/tmp/numba MPLCONFIGDIR=/tmp/matplotlib \
        setpriv --reuid=10001 --regid=10001 --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs \
        kinescan serve --host 0.0.0.0 --port 8765 --model "$folder/model" --media "$folder/media"
}
export -f enter
unshare --mount bash -euc enter > "$folder/log" 2>&1 &
service=$!
trap 'kill $service 2> /dev/null || true' EXIT

# HEALTHCHECK
check="import urllib.request as u; u.urlopen('http://127.0.0.1:8765/health', timeout=4)"
for _ in $(seq 120); do
    kill -0 $service || { cat "$folder/log"; exit 1; }
    "$folder/venv/bin/python" -c "$check" 2> /dev/null && break
    sleep 2
done
"$folder/venv/bin/python" -c "$check"
echo "healthy; user $(ps -o uid= -p $service | tr -d ' '), in its root: $(ls "/proc/$service/root" | tr '\n' ' ')"

"$folder/venv/bin/python" - "$service" <<'PYTHON'
import http.client, os, signal, sys, tempfile, time
from pathlib import Path

import torch

from kinescan.data.video import write_video

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "a.mp4"
    write_video(path, torch.randint(0, 256, (24, 3, 64, 64), dtype=torch.uint8), fps=8)
    video = path.read_bytes()


def connection():
    return http.client.HTTPConnection("127.0.0.1", 8765, timeout=60)


def asked(key):
    link = connection()
    link.request("POST", "/v1/predict", video, {"Authorization": f"Bearer {key}"})
    return link.getresponse().status


right = asked(os.environ["key"])
wrong = asked("none")
print(f"a video: with the key {right}, with another {wrong}")
link = connection()
link.putrequest("POST", "/v1/predict")
link.putheader("Authorization", f"Bearer {os.environ['key']}")
link.putheader("Content-Length", str(len(video)))
link.endheaders(video[:1000])
time.sleep(1)
os.kill(int(sys.argv[1]), signal.SIGTERM)
time.sleep(1)
link.send(video[1000:])
late = link.getresponse().status
print(f"a request under way at SIGTERM: {late}")
sys.exit((right, wrong, late) != (200, 401, 200))
PYTHON
wait $service && status=0 || status=$?
echo "the service ended after SIGTERM with status $status"
