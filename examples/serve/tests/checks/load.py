"""Many at once."""

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import openai
from openai import AsyncOpenAI

from . import CACHED, CAPITALS, FINISHED, FRANCE, PARIS, PROMPT, WRITTEN, Server, capital_of, check
from .chat import joined


@check
def fifty_threads_get_fifty_answers(server: Server):
    server.idle()
    finished = server.metric(FINISHED)
    countries = [list(CAPITALS)[i % len(CAPITALS)] for i in range(50)]

    def ask(index):
        country = countries[index]
        if index % 2:
            return joined(server.chat(capital_of(country), stream=True))["content"]
        return server.chat(capital_of(country)).choices[0].message.content

    with ThreadPoolExecutor(50) as pool:
        for country, answer in zip(countries, pool.map(ask, range(50))):
            assert answer == f"The capital of {country} is {CAPITALS[country]}.", (country, answer)
    server.idle()
    assert server.metric(FINISHED) == finished + 50


@check
def a_seed_gives_the_same_answer_alone_and_among_fifty(server: Server):
    question = {"role": "user", "content": "What is 123 + 456?"}

    def ask(seed):
        message = server.chat(question, temperature=1.5, seed=seed, max_tokens=150).choices[0].message
        return message.content, message.model_extra.get("reasoning_content")

    alone = [ask(seed) for seed in range(10)]
    assert len(set(alone)) > 1, "at this temperature seeds differ"
    with ThreadPoolExecutor(50) as pool:
        together = list(pool.map(ask, [i % 10 for i in range(50)]))
    assert together == alone * 5


@check
def the_async_client_is_served_too(server: Server):
    async def ask(client, country):
        messages = [capital_of(country)]
        asked = {"model": server.model, "messages": messages, "temperature": 0}
        stream = await client.chat.completions.create(stream=True, **asked)
        text = "".join([c.delta.content or "" async for chunk in stream for c in chunk.choices])
        return CAPITALS[country] in text

    async def all_of_them():
        async with AsyncOpenAI(base_url=f"{server.base}/v1", api_key=server.key, max_retries=0) as client:
            return await asyncio.gather(*(ask(client, country) for country in CAPITALS))

    assert all(asyncio.run(all_of_them()))


@check
def a_full_queue_says_when_to_come_back(server: Server):
    server.idle()
    body = {"model": server.model, "prompt": list(range(300, 320)), "max_tokens": 3900, "ignore_eos": True}
    with server.left_open("/v1/completions", body, 400) as sockets:
        error = None
        for _ in range(100):
            try:
                # Whoever still gets a place is not waited for.
                server.client.with_options(timeout=0.2).models.list()
                server.client.with_options(timeout=0.5).chat.completions.create(model=server.model, messages=[FRANCE])
            except openai.APITimeoutError:
                continue
            except openai.RateLimitError as busy:
                error = busy
                break
        assert error is not None, "the queue is never full"
        assert float(error.response.headers["retry-after"]) >= 1, error.response.headers
        assert error.message and error.type, error.body
        # Those that were sent off have been told the same.
        told = 0
        for one in sockets:
            one.settimeout(0.01)
            try:
                told += one.recv(12) == b"HTTP/1.1 429"
            except (TimeoutError, socket.timeout):
                pass
        assert told > 0
    server.idle(20)
    # And after that all is as before; the client that may retry does.
    answer = server.client.with_options(max_retries=3).chat.completions.create(
        model=server.model, messages=[FRANCE], temperature=0
    )
    assert answer.choices[0].message.content == PARIS


@check
def metrics_count_what_usage_says(server: Server):
    server.idle()
    before = {name: server.metric(name) for name in (PROMPT, CACHED, WRITTEN, FINISHED)}
    usages = [server.chat(capital_of(country)).usage for country in CAPITALS for _ in range(2)]
    server.idle()
    after = {name: server.metric(name) - count for name, count in before.items()}
    assert after[FINISHED] == len(usages), after
    assert after[PROMPT] == sum(usage.prompt_tokens for usage in usages), after
    assert after[WRITTEN] == sum(usage.completion_tokens for usage in usages), after
    cached = [usage.prompt_tokens_details.cached_tokens for usage in usages]
    assert after[CACHED] == sum(cached), after
    # The second of each pair has from the first what fills pages of 64 tokens, but for what has to be fed.
    assert all(second == (u.prompt_tokens - 1) // 64 * 64 > 0 for second, u in zip(cached[1::2], usages[1::2])), usages


@check
def metrics_are_in_prometheus_form(server: Server):
    status, headers, text = server.open("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain"), headers["content-type"]
    kinds = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in kinds, f"{name} is declared twice"
            kinds[name] = kind
        elif line and not line.startswith("#"):
            name = line.split("{")[0].split()[0]
            base = next(
                (n for n in (name, *(name.removesuffix(s) for s in ("_bucket", "_sum", "_count"))) if n in kinds), None
            )
            assert base, f"{name} has no # TYPE before it"
            assert kinds[base] != "counter" or name.endswith("_total"), name
            float(line.rsplit(" ", 1)[1])
    for base in [name for name, kind in kinds.items() if kind == "histogram"]:
        counts = [float(l.rsplit(" ", 1)[1]) for l in text.splitlines() if l.startswith(base + "_bucket")]
        [count] = [float(l.rsplit(" ", 1)[1]) for l in text.splitlines() if l.startswith(base + "_count")]
        assert counts == sorted(counts) and counts[-1] == count, (base, counts, count)
    assert sum(kind == "histogram" for kind in kinds.values()) >= 2, kinds
    assert json.dumps(kinds).count("cache") >= 1, kinds
