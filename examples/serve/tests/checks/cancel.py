"""A client that goes away: what it asked for ends."""

import time

from . import CANCELLED, ENDS, FRANCE, PARIS, RUNNING, WAITING, WRITTEN, Server, check, within


def ends(server, count, begun, cancelled):
    """All `count` are over: cancelled, and long before the 3,900 tokens that each had been allowed."""
    within(5, lambda: server.metric(CANCELLED) >= cancelled + count, server.metrics)
    server.idle()
    written = server.metric(WRITTEN) - begun
    assert written < count * 3900 / 2, f"{written} tokens were written for nobody"


def cancelled_by(server, count, act):
    server.idle()
    begun, cancelled = server.metric(WRITTEN), server.metric(CANCELLED)
    act()
    ends(server, count, begun, cancelled)
    assert server.chat(FRANCE).choices[0].message.content == PARIS


@check
def closing_a_stream_cancels_its_answer(server: Server):
    def act():
        stream = server.endless()
        for _ in range(5):
            next(stream)
        assert server.metric(RUNNING) == 1
        stream.close()

    cancelled_by(server, 1, act)


@check
def closing_one_of_many_streams_leaves_the_others(server: Server):
    """https://github.com/ikawrakow/ik_llama.cpp/issues/1929: a cancel ended another's answer."""

    def act():
        streams = [server.endless(seed=seed) for seed in range(4)]
        for stream in streams:
            next(stream)
        streams[1].close()
        within(5, lambda: server.metric(RUNNING) == 3, server.metrics)
        for index in (0, 2, 3):
            assert sum(1 for _, _ in zip(range(50), streams[index])) == 50
            streams[index].close()

    cancelled_by(server, 4, act)


@check
def closing_a_completion_or_a_response_cancels_it(server: Server):
    def completion():
        body = {"prompt": [300] * 20, "max_tokens": 3900, "extra_body": {"ignore_eos": True}}
        stream = server.client.completions.create(model=server.model, stream=True, **body)
        next(stream)
        stream.close()

    def response():
        fields = {"model": server.model, "extra_body": {"logit_bias": ENDS}, "max_output_tokens": 3900}
        stream = server.client.responses.create(input=FRANCE["content"], stream=True, **fields)
        for _ in range(6):
            next(stream)
        stream.close()

    cancelled_by(server, 1, completion)
    cancelled_by(server, 1, response)


@check
def hanging_up_cancels_what_is_not_streamed(server: Server):
    """https://github.com/ggml-org/llama.cpp/issues/13262, https://github.com/ollama/ollama/issues/11889: a request that
    waits or whose prompt is being read goes on when its client has hung up. The tail of these has to wait."""
    count = 40
    body = {"model": server.model, "prompt": list(range(300, 1300)), "max_tokens": 3000, "ignore_eos": True}

    def act():
        with server.left_open("/v1/completions", body, count):
            within(10, lambda: server.metric(RUNNING) + server.metric(WAITING) == count, server.metrics)

    server.idle()
    begun = server.metric(WRITTEN)
    cancelled_by(server, count, act)
    # 40 answers of 3,000 tokens would be 120,000.
    assert server.metric(WRITTEN) - begun < 20_000


@check
def a_reader_that_stops_holds_up_only_itself(server: Server):
    body = {
        "model": server.model,
        "prompt": list(range(300, 320)),
        "max_tokens": 3900,
        "ignore_eos": True,
        "stream": True,
    }
    with server.left_open("/v1/completions", body, 3):
        time.sleep(0.2)
        for _ in range(3):
            begun = time.monotonic()
            assert server.chat(FRANCE).choices[0].message.content == PARIS
            assert time.monotonic() - begun < 10
    server.idle()
