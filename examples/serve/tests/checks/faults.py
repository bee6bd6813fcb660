"""What is refused, and how it is said."""

import json
import socket

import openai

from . import CONTEXT, FRANCE, PARIS, Server, check


def refused(kind, call):
    """The error of a call that must fail as `kind`."""
    try:
        call()
    except kind as error:
        assert error.message and isinstance(error.body, dict), error.body
        return error
    raise AssertionError(f"expected {kind.__name__}, it was taken")


@check
def a_wrong_key_is_told(server: Server):
    for key in ("sk-not-this-one", server.key + "x", server.key[:-1]):
        client = server.client.with_options(api_key=key)
        for call in (
            lambda: client.chat.completions.create(model=server.model, messages=[FRANCE]),
            lambda: client.responses.create(model=server.model, input="Hello"),
            lambda: client.completions.create(model=server.model, prompt="Hello"),
            client.models.list,
        ):
            error = refused(openai.AuthenticationError, call)
            assert error.code == "invalid_api_key" and key not in error.message, error.body
    assert server.error("GET", "/v1/models", key=False)[0] == 401
    # Whoever watches the server needs no key.
    status, _, text = server.open("GET", "/health", key=False)
    assert status == 200, text


@check
def a_prompt_that_is_too_long_is_told(server: Server):
    long = {"role": "user", "content": "What is the capital of France? " * (CONTEXT // 5)}
    for call in (
        lambda: server.chat(long),
        lambda: server.chat(long, stream=True),
        lambda: server.client.responses.create(model=server.model, input=long["content"]),
        lambda: server.client.completions.create(model=server.model, prompt=[300] * (CONTEXT + 1)),
    ):
        error = refused(openai.BadRequestError, call)
        assert error.code == "context_length_exceeded" and str(CONTEXT) in error.message, error.body


@check
def an_unknown_model_is_told(server: Server):
    error = refused(openai.NotFoundError, lambda: server.chat(FRANCE, model="gpt-none"))
    assert error.code == "model_not_found" and "gpt-none" in error.message, error.body
    assert server.model in error.message, "and what there is"


@check
def fields_out_of_range_are_named(server: Server):
    for fields in (
        {"temperature": -1},
        {"top_p": 2},
        {"max_tokens": -5},
        {"n": 0},
        {"top_logprobs": 3},
        {"reasoning_effort": "enormous"},
        {"tool_choice": "perhaps"},
    ):
        error = refused(openai.BadRequestError, lambda: server.chat(FRANCE, **fields))
        [name] = fields
        assert name in error.message or name.replace("_", " ") in error.message, (fields, error.message)
        assert error.type == "invalid_request_error", error.body
    for messages in ([], [{"role": "nobody", "content": "x"}], [{"role": "tool", "content": "x"}]):
        refused(openai.BadRequestError, lambda: server.chat(messages))


@check
def fields_that_would_change_the_answer_are_refused_others_ignored(server: Server):
    for fields in (
        {"modalities": ["text", "audio"]},
        {"web_search_options": {}},
        {"functions": [{"name": "f"}]},
        {"audio": {"voice": "alloy", "format": "wav"}},
    ):
        error = refused(openai.BadRequestError, lambda: server.chat(FRANCE, **fields))
        assert next(iter(fields)) in error.message, (fields, error.message)
    ignored = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "parallel_tool_calls": True,
    }
    assert server.chat(FRANCE, **ignored).choices[0].message.content == PARIS


@check
def a_request_that_is_no_json_is_told(server: Server):
    for body in (b"{", b"", b"[]", b'{"messages": 5}', b"\xff\xfe"):
        status, error = server.error("POST", "/v1/chat/completions", body)
        assert status == 400 and error["type"] == "invalid_request_error", (body, error)
    assert server.error("GET", "/v1/no/such/route")[0] == 404
    assert server.error("GET", "/v1/chat/completions")[0] == 405


@check
def a_body_that_is_too_large_is_told(server: Server):
    # Before it is sent, as far as the server is asked: who sends it all the same finds the connection closed.
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {server.key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {1 << 30}\r\n\r\n{{"
    with socket.create_connection(server.address, timeout=20) as one:
        one.sendall(head.encode())
        answer = one.recv(1 << 16).decode()
    assert answer.startswith("HTTP/1.1 413 "), answer
    assert json.loads(answer.split("\r\n\r\n")[1])["error"]["type"] == "invalid_request_error", answer


@check
def a_page_of_another_origin_may_ask(server: Server):
    headers = {
        "origin": "http://localhost:3000",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    status, headers, _ = server.open("OPTIONS", "/v1/chat/completions", headers=headers, key=False)
    assert status in (200, 204) and headers["access-control-allow-origin"] in ("*", "http://localhost:3000"), headers
    allowed = headers["access-control-allow-headers"].lower()
    assert allowed == "*" or "authorization" in allowed, headers
