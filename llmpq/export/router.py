"""The router of several replicas: nginx before one server each, shares by weight, and the script that starts the servers."""

from llmpq.plan import Plan

NGINX_FILE = "nginx.conf"
SCRIPT_FILE = "launch.sh"
FIRST_PORT = 8001  # of the servers; the router answers at the port before it
PARTS = 100  # nginx takes whole weights

NGINX = """# nginx -c "$PWD/nginx.conf": answers at port {port} for the servers that launch.sh starts, by the weights of the plan.
# Servers on other hosts: put their names in place of 127.0.0.1.
pid /tmp/llmpq-nginx.pid;
events {{}}
http {{
  access_log off;
  upstream replicas {{
{servers}
  }}
  server {{
    listen {port};
    client_max_body_size 64m;
    location / {{
      proxy_pass http://replicas;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 1h;
    }}
  }}
}}
"""
SCRIPT = """#!/usr/bin/env bash
# Starts the vLLM of every replica on this machine; ends, and ends the others, when one of them does.
#   PYTHON=/path/to/python ./launch.sh [any option of vLLM]
# Then: nginx -c "$PWD/nginx.conf" shares requests out at port {port}. Replicas of other hosts: replica-N/launch.sh --port there.
set -uo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"
FIRST_PORT=${{FIRST_PORT:-{first}}}
trap 'trap - EXIT; kill 0' EXIT INT TERM
{servers}
wait -n
"""


def weights(plan: Plan) -> tuple[int, ...]:
    """The shares of the pipelines in whole parts of a hundred, at least one each."""
    shares = [1.0 if pipeline.replica is None else pipeline.replica.weight for pipeline in plan.pipelines]
    return tuple(max(1, round(PARTS * share)) for share in shares)


def nginx_config(plan: Plan) -> str:
    """A configuration of nginx that shares requests out by weight, answers streamed."""
    servers = (
        f"    server 127.0.0.1:{FIRST_PORT + number} weight={weight};  # replica-{number}: {_devices(plan, number)}"
        for number, weight in enumerate(weights(plan))
    )
    return NGINX.format(port=FIRST_PORT - 1, servers="\n".join(servers))


def start_script(plan: Plan) -> str:
    """Bash: every replica's own launch script, each with a port of its own."""
    servers = (f'replica-{number}/launch.sh --port $((FIRST_PORT + {number})) "$@" &' for number in range(len(plan.pipelines)))
    return SCRIPT.format(port=FIRST_PORT - 1, first=FIRST_PORT, servers="\n".join(servers))


def _devices(plan: Plan, number: int) -> str:
    return ", ".join(stage.device for stage in plan.pipelines[number].stages)
