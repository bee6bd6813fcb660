"""The server under test, and what all checks need to know of its model."""

import contextlib
import json
import socket
import time
import urllib.parse
import urllib.request

from openai import OpenAI

CHECKS = []

# The model is sure of all this, so that a wrong answer is the server's fault.
FRANCE = {"role": "user", "content": "What is the capital of France?"}
PARIS = "The capital of France is Paris."
CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Germany": "Berlin", "Japan": "Tokyo", "Norway": "Oslo",
    "Greece": "Athens", "Poland": "Warsaw", "Portugal": "Lisbon", "Austria": "Vienna",
}  # fmt: skip
# Ids of the tokens that end a message or an answer: without them it writes until the context is full.
ENDS = {"1980": -100, "1983": -100, "1988": -100, "1993": -100}
# 4,096 tokens of context: what is surely too much for it.
CONTEXT = 4096


def check(function):
    """Registers a check; its name is what a user sees when all is well."""
    CHECKS.append(function)
    return function


def capital_of(country):
    return {"role": "user", "content": f"What is the capital of {country}?"}


def within(seconds, true, what):
    """Waits until `true()`; what holds soon after an event, such as a count."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"after {seconds} s still not: {what()}"
        time.sleep(0.02)


class Server:
    def __init__(self, base, key):
        self.base, self.key = base, key
        address = urllib.parse.urlsplit(base)
        self.address = (address.hostname, address.port)
        # Nothing is tried again unseen, and nothing hangs the gate.
        self.client = OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0, timeout=60)
        self.model = self.client.models.list().data[0].id

    def chat(self, messages, **fields):
        """A chat completion; at temperature 0 unless told."""
        messages = [messages] if isinstance(messages, dict) else messages
        fields = {"temperature": 0, "model": self.model, **fields}
        return self.client.chat.completions.create(messages=messages, **fields)

    def endless(self, **fields):
        """A streamed chat that has no end of its own."""
        return self.chat(FRANCE, stream=True, logit_bias=ENDS, max_tokens=3900, **fields)

    def open(self, method, path, body=None, headers=None, key=True):
        """A plain HTTP exchange: its status, headers and text."""
        headers = {"content-type": "application/json", **(headers or {})}
        if key:
            headers["authorization"] = f"Bearer {self.key}"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.headers, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def error(self, method, path, body=None, **more):
        """The status and the `error` of an exchange that must fail in OpenAI's shape."""
        status, headers, text = self.open(method, path, body, **more)
        error = json.loads(text)["error"]
        assert status >= 400 and set(error) >= {"message", "type", "param", "code"}, (status, error)
        assert headers["content-type"].startswith("application/json"), headers["content-type"]
        return status, error

    @contextlib.contextmanager
    def left_open(self, path, body, count=1):
        """So many requests sent, each on a socket of its own that nobody reads; closed at the end."""
        text = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: {self.address[0]}\r\nauthorization: Bearer {self.key}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
        sockets = []
        try:
            for _ in range(count):
                sockets.append(socket.create_connection(self.address, timeout=60))
                sockets[-1].sendall(head.encode() + text)
            yield sockets
        finally:
            for one in sockets:
                one.close()

    def metrics(self):
        """Every sample of /metrics, by its name and labels."""
        status, _, text = self.open("GET", "/metrics", key=False)
        assert status == 200, text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
        return {name.removeprefix("gpt_oss_puzzle:"): float(value) for name, value in lines}

    def metric(self, name):
        samples = self.metrics()
        assert name in samples, f"no {name} in {sorted(samples)}"
        return samples[name]

    def idle(self, seconds=5):
        """Waits until nothing runs and nothing waits."""
        names = (RUNNING, WAITING)
        within(seconds, lambda: not any(self.metric(n) for n in names), lambda: {n: self.metric(n) for n in names})


RUNNING, WAITING = "num_requests_running", "num_requests_waiting"
FINISHED, CANCELLED = 'requests_total{outcome="finished"}', 'requests_total{outcome="cancelled"}'
PROMPT, CACHED, WRITTEN = "prompt_tokens_total", "cached_prompt_tokens_total", "generation_tokens_total"
