"""A stand-in for vLLM's server: the answers that llmpq asks for, or a death, as LLMPQ_FAKE says."""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

BEHAVIOUR = os.environ.get("LLMPQ_FAKE", "")
BLOCKS = 7


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answers = {
            "/health": "",
            "/v1/models": json.dumps({"data": [{"id": "tiny"}]}),
            "/metrics": f'# HELP x\nvllm:cache_config_info{{block_size="16",num_gpu_blocks="{BLOCKS}"}} 1.0\n',
        }
        self.answer(200, answers[self.path])

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["prompt"] == [0]:
            self.answer(400, "prompt is empty")
            return
        steps = [None, *({str(token): {"logprob": -float(token)}} for token in asked["prompt"][1:])]
        ended = 4 in asked.get("stop_token_ids", [])
        choice = {
            "prompt_logprobs": steps,
            "token_ids": [*asked["prompt"][-1:], 4][: asked["max_tokens"]],
            "finish_reason": "stop" if ended else "length",
            "logprobs": {"token_logprobs": [-0.5, -0.25]} if "logprobs" in asked else None,
        }
        self.answer(200, json.dumps({"choices": [choice]}))

    def answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    if BEHAVIOUR == "dies":
        print("INFO loading\nValueError: no kernel for this weight\nRuntimeError: Engine core initialization failed", flush=True)
        sys.exit(3)
    if BEHAVIOUR == "hangs":
        print("INFO loading", flush=True)
        time.sleep(600)
    if BEHAVIOUR == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()


main()
