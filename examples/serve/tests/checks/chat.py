"""/v1/chat/completions and /v1/models."""

import json

import openai

from . import CAPITALS, FRANCE, PARIS, Server, capital_of, check


def joined(chunks, index=0):
    """What a client makes of the chunks of one choice."""
    whole = {"content": "", "reasoning_content": "", "calls": {}, "finish": None, "roles": []}
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.index != index:
                continue
            assert whole["finish"] is None, f"a chunk after the last: {choice}"
            delta = choice.delta
            if delta.role:
                whole["roles"].append(delta.role)
            whole["content"] += delta.content or ""
            whole["reasoning_content"] += (delta.model_extra or {}).get("reasoning_content") or ""
            for call in delta.tool_calls or []:
                known = whole["calls"].setdefault(call.index, {"id": None, "name": None, "arguments": ""})
                for key, value in (("id", call.id), ("name", call.function.name)):
                    assert value is None or known[key] is None, f"{key} comes a second time: {call}"
                    known[key] = known[key] or value
                known["arguments"] += call.function.arguments or ""
            whole["finish"] = choice.finish_reason
    return whole


@check
def the_list_of_models_names_the_one_that_answers(server: Server):
    models = server.client.models.list().data
    assert [model.object for model in models] == ["model"] and models[0].created > 0, models
    assert server.client.models.retrieve(server.model).id == server.model
    assert server.chat(FRANCE).model == server.model
    try:
        server.client.models.retrieve("no-such-model")
        raise AssertionError("a model that is not there was found")
    except openai.NotFoundError as error:
        assert "no-such-model" in error.message, error.message


@check
def a_question_is_answered(server: Server):
    answer = server.chat(FRANCE)
    [choice], usage = answer.choices, answer.usage
    assert (choice.message.content, choice.finish_reason, choice.index) == (PARIS, "stop", 0), choice
    assert choice.message.role == "assistant" and not choice.message.tool_calls, choice
    assert "France" in choice.message.model_extra["reasoning_content"], choice
    assert answer.object == "chat.completion" and answer.created > 0, answer
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 50, usage
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens, usage
    # No two answers are one.
    assert server.chat(FRANCE).id != answer.id


@check
def content_in_parts_and_a_system_message_are_read(server: Server):
    parts = [{"type": "text", "text": "What is the capital "}, {"type": "text", "text": "of Spain?"}]
    messages = [{"role": "system", "content": "Answer."}, {"role": "user", "content": parts}]
    assert "Madrid" in server.chat(messages).choices[0].message.content


@check
def a_conversation_is_gone_on_with_and_read_from_the_cache(server: Server):
    messages = []
    for country, city in list(CAPITALS.items())[:5]:
        messages.append(capital_of(country))
        answer = server.chat(messages)
        message = answer.choices[0].message
        assert city in message.content, (country, message)
        cached = answer.usage.prompt_tokens_details.cached_tokens
        assert cached <= answer.usage.prompt_tokens, answer.usage
        # As clients do: the whole message goes back, chain of thought too.
        messages.append(message.to_dict())
    # All but the last answer and question, and not more than a page of 64 tokens besides.
    assert cached >= answer.usage.prompt_tokens - 64 - 60, answer.usage


@check
def a_stream_is_the_whole_answer(server: Server):
    whole = server.chat(FRANCE).choices[0].message
    chunks = list(server.chat(FRANCE, stream=True))
    heard = joined(chunks)
    assert heard["content"] == whole.content and heard["finish"] == "stop", heard
    assert heard["reasoning_content"] == whole.model_extra["reasoning_content"], heard
    assert heard["roles"] == ["assistant"] and chunks[0].choices[0].delta.role == "assistant", chunks[0]
    assert len({(chunk.id, chunk.created, chunk.object) for chunk in chunks}) == 1
    # Many deltas, not one; no usage, which was not asked for.
    assert len(chunks) > 10 and not any(chunk.usage for chunk in chunks), chunks
    # https://github.com/vllm-project/vllm/issues/35705: clients drop the text of the chunk that finishes.
    last = chunks[-1].choices[0]
    assert last.finish_reason and not last.delta.content and not last.delta.tool_calls, last


@check
def a_stream_tells_its_usage_when_asked(server: Server):
    whole = server.chat(FRANCE).usage
    chunks = list(server.chat(FRANCE, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and not any(chunk.usage for chunk in chunks[:-1]), chunks[-2:]
    told = chunks[-1].usage
    assert (told.prompt_tokens, told.completion_tokens) == (whole.prompt_tokens, whole.completion_tokens)
    assert joined(chunks)["content"] == PARIS


@check
def the_bytes_of_a_stream_are_server_sent_events(server: Server):
    body = {"model": server.model, "messages": [FRANCE], "stream": True, "temperature": 0}
    status, headers, text = server.open("POST", "/v1/chat/completions", body)
    assert status == 200 and headers["content-type"].startswith("text/event-stream"), headers
    events = text.split("\n\n")
    assert events.pop() == "" and events.pop() == "data: [DONE]", text[-200:]
    for event in events:
        # A comment that keeps the connection alive is none of the client's business.
        if not event.startswith(":"):
            assert json.loads(event.removeprefix("data: "))["object"] == "chat.completion.chunk", event


@check
def the_clients_own_accumulator_takes_the_stream(server: Server):
    with server.client.chat.completions.stream(model=server.model, messages=[FRANCE], temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert final.choices[0].message.content == PARIS and final.choices[0].finish_reason == "stop", final
    deltas = "".join(event.delta for event in events if event.type == "content.delta")
    [done] = [event.content for event in events if event.type == "content.done"]
    assert deltas == done == PARIS, (deltas, done)


@check
def logprobs_are_told_of_every_token(server: Server):
    answer = server.chat(FRANCE, logprobs=True, top_logprobs=3).choices[0]
    tokens = answer.logprobs.content
    assert tokens and all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens), tokens
    for token in tokens:
        # At temperature 0 the first of the best is what was taken.
        assert token.top_logprobs[0].token == token.token, token
        assert bytes(token.bytes).decode(errors="replace") == token.token, token
    text = bytes(byte for token in tokens for byte in token.bytes).decode()
    assert PARIS in text, text
    streamed = [
        token
        for chunk in server.chat(FRANCE, logprobs=True, top_logprobs=3, stream=True)
        for choice in chunk.choices
        for token in (choice.logprobs.content or [] if choice.logprobs else [])
    ]
    assert [token.token for token in streamed] == [token.token for token in tokens]
    assert server.chat(FRANCE).choices[0].logprobs is None


@check
def three_choices_are_three_answers(server: Server):
    asked = {"temperature": 1.0, "seed": 11, "max_tokens": 80}
    question = {"role": "user", "content": "What is the population of Zorvania?"}
    three = server.chat(question, n=3, **asked)
    assert sorted(choice.index for choice in three.choices) == [0, 1, 2], three
    texts = {choice.index: choice.message.content for choice in three.choices}
    # Each is the answer to its own seed, also when asked for alone.
    for index in range(3):
        alone = server.chat(question, **{**asked, "seed": 11 + index}).choices[0]
        assert alone.message.content == texts[index], (index, alone, texts)
    one = server.chat(question, **asked).usage
    assert three.usage.prompt_tokens == one.prompt_tokens, "the prompt is counted once"
    assert three.usage.completion_tokens > one.completion_tokens, (three.usage, one)
    chunks = list(server.chat(question, n=3, stream=True, **asked))
    heard = {index: joined(chunks, index) for index in range(3)}
    assert {index: whole["content"] for index, whole in heard.items()} == {i: t or "" for i, t in texts.items()}
    assert all(whole["finish"] for whole in heard.values()), heard


@check
def a_stop_text_ends_the_answer_before_it(server: Server):
    for stream in (False, True):
        answer = server.chat(FRANCE, stop=[" Paris"], stream=stream)
        whole = joined(answer) if stream else answer.choices[0].message.to_dict()
        assert whole["content"] == "The capital of France is", whole


@check
def an_answer_that_is_cut_says_so(server: Server):
    for limit in ("max_tokens", "max_completion_tokens"):
        answer = server.chat(FRANCE, **{limit: 5})
        assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 5, answer
    chunks = list(server.chat(FRANCE, max_tokens=5, stream=True))
    assert joined(chunks)["finish"] == "length" and not chunks[-1].choices[0].delta.content, chunks


@check
def more_effort_thinks_longer(server: Server):
    question = {"role": "user", "content": "What is 17 + 25?"}
    low, high = (server.chat(question, reasoning_effort=effort) for effort in ("low", "high"))
    assert all("42" in answer.choices[0].message.content for answer in (low, high)), (low, high)
    low, high = (answer.usage.completion_tokens_details.reasoning_tokens for answer in (low, high))
    assert low < high, (low, high)
